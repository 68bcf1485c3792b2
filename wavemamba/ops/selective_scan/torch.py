"""Selective scan in vectorised PyTorch: any device, every gradient, also second ones, no exponent above zero."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, widest_dtype
from wavemamba.ops.packed import sequence_starts
from wavemamba.ops.selective_scan.op import ScanInputs
from wavemamba.scans import invert_permutation


def linear_recurrence(decay: Tensor, value: Tensor, starts: Tensor | None = None) -> Tensor:
    """Solve `h_l = decay_l * h_{l-1} + value_l`, `h_{-1} = 0`, along dimension 1; where a step starts, `h_l = value_l`.

    Neighbouring steps are merged in pairs, the half-length problem is solved the same way, and the other half follows
    from it: `2 L` multiplications, `log2 L` deep. Only products of decays are formed, never quotients, so that nothing
    overflows where the decays are at most 1.

    Args:
        decay: (B, L, ...); further sides of 1 stand for any.
        value: (B, L, ...).
        starts: bool, (B, L) with as many further sides of 1; None: nowhere.

    Returns:
        h, (B, L, ...).

    Source: Blelloch, "Prefix sums and their applications", 1990, section 1.4.
    """
    length = value.shape[1]
    if length == 1:
        return value
    even_decay, odd_decay = decay[:, 0::2], decay[:, 1::2]
    even_value, odd_value = value[:, 0::2], value[:, 1::2]
    pairs = odd_decay.shape[1]
    even_starts, odd_starts = (None, None) if starts is None else (starts[:, 0::2], starts[:, 1::2])
    either = None if even_starts is None or odd_starts is None else odd_starts | even_starts[:, :pairs]
    odd = linear_recurrence(
        odd_decay * even_decay[:, :pairs], _follow(odd_value, odd_decay, even_value[:, :pairs], odd_starts), either
    )
    before = odd[:, : even_value.shape[1] - 1]
    rest = _follow(even_value[:, 1:], even_decay[:, 1:], before, None if even_starts is None else even_starts[:, 1:])
    even = torch.cat([even_value[:, :1], rest], dim=1)
    merged = torch.stack([even[:, :pairs], odd], dim=2).flatten(1, 2)
    return merged if length == 2 * pairs else torch.cat([merged, even[:, pairs:]], dim=1)


def _follow(value: Tensor, decay: Tensor, before: Tensor, starts: Tensor | None) -> Tensor:
    """`value + decay * before`, and `value` alone where a step starts, whatever stood before."""
    after = torch.addcmul(value, decay, before)
    return after if starts is None else torch.where(starts, value, after)


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
