"""`mamba_ssm.modules.ssd_minimal`: Mamba-2's scan with step sizes already multiplied in."""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.ops.ssd_scan.torch import chunked_scan

__all__ = ["segsum", "segsum_unstable", "ssd_minimal_discrete"]


def segsum(x: Tensor) -> Tensor:
    """Sums over segments: entry (i, j) is `x[j + 1] + ... + x[i]` for j <= i, -inf above: (..., T) -> (..., T, T)."""
    steps = x.shape[-1]
    below = torch.ones(steps, steps, device=x.device, dtype=torch.bool).tril(-1)
    sums = x.unsqueeze(-1).expand(*x.shape, steps).masked_fill(~below, 0).cumsum(-2)
    return sums.masked_fill(below.mT, -torch.inf)


def segsum_unstable(x: Tensor) -> Tensor:
    """`segsum` as differences of one cumulative sum, which loses digits in long segments."""
    total = x.cumsum(-1)
    steps = x.shape[-1]
    above = torch.ones(steps, steps, device=x.device, dtype=torch.bool).triu(1)
    return (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(above, -torch.inf)


def ssd_minimal_discrete(
    X: Tensor, A: Tensor, B: Tensor, C: Tensor, block_len: int, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`h_l = exp(A_l) h_{l-1} + X_l B_l`, `Y_l = C_l h_l`.

    Args:
        X: (B, L, H, P), the input times its step size.
        A: (B, L, H), the exponent of the decay.
        B: (B, L, H, N).
        C: (B, L, H, N).
        block_len: steps that one matrix product takes.
        initial_states: (B, 1, H, P, N), or None.

    Returns:
        (B, L, H, P), and the last state (B, H, P, N).
    """
    initial = None if initial_states is None else initial_states.squeeze(1)
    y, last = chunked_scan(A, X, B, C, initial, None, block_len, return_last_state=True)
    assert last is not None
    return y, last
