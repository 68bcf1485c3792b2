"""Gated linear attention, the definition: one step after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, widest_dtype
from wavemamba.ops.packed import sequence_starts


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int,
    return_last_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `wavemamba.ops.gla_scan` for the equation and shapes."""
    wide = accumulation_dtype(widest_dtype(q, k, v, log_decay))
    queries, keys, values, decay = q.to(wide), k.to(wide), v.to(wide), log_decay.to(wide).exp()
    state = values.new_zeros(q.shape[0], *k.shape[2:], v.shape[3])
    if initial_state is not None:
        state = state + initial_state.to(wide)
    starts = None if seq_idx is None else sequence_starts(seq_idx, None)
    ys = []
    for step in range(q.shape[1]):
        if starts is not None:
            state = torch.where(starts[:, step, None, None, None], 0, state)
        state = decay[:, step, :, :, None] * state + keys[:, step, :, :, None] * values[:, step, :, None, :]
        ys.append((queries[:, step, :, :, None] * state).sum(2))
    return torch.stack(ys, dim=1).to(v.dtype), state
