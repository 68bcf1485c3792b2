"""Selective scan in vectorised PyTorch: any device, every gradient, also second ones, no exponent above zero."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, widest_dtype
from wavemamba.ops.packed import sequence_starts
from wavemamba.ops.recurrence import linear_recurrence
from wavemamba.ops.selective_scan.op import ScanInputs
from wavemamba.scans import invert_permutation


def run(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """All steps at once; see `wavemamba.ops.selective_scan` for the equation and shapes."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, seq_idx = inputs
    length = u.shape[1]
    dtype = accumulation_dtype(widest_dtype(u, delta, A))
    x, d, A = u.to(dtype), delta.to(dtype), A.to(dtype)
    B, C = B.to(dtype), C.to(dtype)
    if order is not None:
        x, d, B, C = (t.index_select(1, order) for t in (x, d, B, C))
    if delta_bias is not None:
        d = d + delta_bias.to(dtype)
    if delta_softplus:
        d = F.softplus(d)
    groups = B.shape[2]
    decay = torch.exp(d[..., None] * A)  # (B, L, E, N)
    grouped = (d * x).unflatten(2, (groups, -1))[..., None]  # (B, L, G, E / G, 1)
    value = (grouped * B.unsqueeze(3)).flatten(2, 3)
    if initial_state is None and length == 1:  # the decay of a single step is an input too, whose gradient is zero
        initial_state = torch.zeros_like(decay[:, 0])
    if initial_state is not None:
        first = torch.addcmul(value[:, :1], decay[:, :1], initial_state.to(dtype).unsqueeze(1))
        value = torch.cat([first, value[:, 1:]], dim=1)
    starts = None if seq_idx is None else sequence_starts(seq_idx, order)[..., None, None]
    states = linear_recurrence(decay, value, starts)
    y = (states.unflatten(2, (groups, -1)) * C.unsqueeze(3)).sum(-1).flatten(2, 3)
    if D is not None:
        y = y + D.to(dtype) * x
    if order is not None:
        y = y.index_select(1, invert_permutation(order))
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), states[:, -1]
