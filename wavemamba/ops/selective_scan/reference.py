"""Selective scan, the definition: a plain loop over the steps, in any dtype up to float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, widest_dtype
from wavemamba.ops.packed import sequence_starts
from wavemamba.ops.selective_scan.op import ScanInputs


def run(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """One step at a time; see `wavemamba.ops.selective_scan` for the equation and shapes."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, seq_idx = inputs
    batch, length, width = u.shape
    dtype = accumulation_dtype(widest_dtype(u, delta, A))
    per_group = width // B.shape[2]
    steps = range(length) if order is None else order.tolist()

    state = u.new_zeros(batch, width, A.shape[1], dtype=dtype) if initial_state is None else initial_state.to(dtype)
    rows: list[Tensor | None] = [None] * length
    starts = None if seq_idx is None else sequence_starts(seq_idx, order)
    for step, row in enumerate(steps):
        if starts is not None:
            state = torch.where(starts[:, step, None, None], 0, state)
        u_l, d_l = u[:, row].to(dtype), delta[:, row].to(dtype)
        B_l = B[:, row].to(dtype).repeat_interleave(per_group, dim=1)  # (B, E, N)
        C_l = C[:, row].to(dtype).repeat_interleave(per_group, dim=1)
        if delta_bias is not None:
            d_l = d_l + delta_bias.to(dtype)
        if delta_softplus:
            d_l = F.softplus(d_l)
        state = torch.exp(d_l[..., None] * A.to(dtype)) * state + (d_l * u_l)[..., None] * B_l
        y_l = (state * C_l).sum(-1)
        if D is not None:
            y_l = y_l + D.to(dtype) * u_l
        if z is not None:
            y_l = y_l * F.silu(z[:, row].to(dtype))
        rows[row] = y_l
    y = torch.stack([y_l for y_l in rows if y_l is not None], dim=1)
    return y.to(u.dtype), state
