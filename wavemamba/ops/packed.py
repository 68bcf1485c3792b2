"""Several sequences in one row of a batch: where a sequence starts, in the sequence of the steps.

`seq_idx` (B, L) numbers the sequence of every row. Step `l` starts a sequence where the row that it visits has another
number than the row visited before; the first step goes on with the initial state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.checks import expect_shape
from wavemamba.errors import ShapeError
from wavemamba.ops.dispatch.operands import expect_beside


def expect_seq_idx(seq_idx: Tensor, x: Tensor) -> None:
    """Raise `ShapeError` where `seq_idx` does not number the rows of `x` (B, L, E)."""
    if not isinstance(seq_idx, Tensor) or seq_idx.dtype not in (torch.int64, torch.int32):
        came = seq_idx.dtype if isinstance(seq_idx, Tensor) else type(seq_idx).__name__
        raise ShapeError(f"seq_idx: expected a tensor (B, L) of int64 or int32, got {came}; convert it")
    expect_shape("seq_idx", seq_idx, tuple(x.shape[:2]), "(B, L)", "give each row the number of its sequence")
    expect_beside("seq_idx", seq_idx, x)


def sequence_starts(seq_idx: Tensor, order: Tensor | None) -> Tensor:
    """Which steps start a sequence, (B, L) bool."""
    visited = seq_idx if order is None else seq_idx.index_select(1, order)
    before = torch.arange(-1, visited.shape[1] - 1, device=visited.device).clamp(min=0)
    return visited != visited.index_select(1, before)


def first_steps(seq_idx: Tensor, order: Tensor | None, before: int) -> Tensor:
    """The first step of the sequence that each step belongs to, (B, L) int64.

    Args:
        seq_idx: (B, L).
        order: (L,), the row that each step visits; None: in turn.
        before: steps of the initial state, which the first sequence begins with.
    """
    starts = sequence_starts(seq_idx, order)
    steps = torch.arange(starts.shape[1], device=starts.device)
    first = torch.where(starts, steps, 0).cummax(dim=1).values
    return torch.where(first == 0, -before, first)


def last_inputs(
    x: Tensor, initial_state: Tensor | None, before: int, order: Tensor | None, seq_idx: Tensor | None
) -> Tensor:
    """The last inputs of the last step's sequence, (B, before, E), oldest first, zeros where it has fewer.

    Args:
        x: (B, L, E).
        initial_state: (B, before, E), the inputs before the first step; zero where absent.
        before: how many inputs.
        order: (L,), the row that each step visits; None: in turn.
        seq_idx: (B, L), or None: one sequence.
    """
    batch, length, channels = x.shape
    recent = slice(max(length - before, 0), length)
    seen = x[:, recent] if order is None else x.index_select(1, order[recent])
    if initial_state is None:
        initial_state = x.new_zeros(batch, before, channels)
    seen = torch.cat([initial_state.to(x.dtype), seen], dim=1)[:, seen.shape[1] :]
    if seq_idx is None:
        return seen
    steps = torch.arange(length - before, length, device=x.device)
    return torch.where((steps >= first_steps(seq_idx, order, before)[:, -1:]).unsqueeze(-1), seen, 0)
