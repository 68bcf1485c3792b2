"""`mamba_ssm.ops.triton.selective_state_update`: one step of the recurrence, the state updated in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.checks import expect_shape
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ShapeError

__all__ = ["selective_state_update", "selective_state_update_ref"]


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """`state = exp(dt A) state + dt x B`, then `C state + D x`, times `SiLU(z)`; every tensor may have a head axis H.

    Args:
        state: (B, D, N) or (B, H, D, N); written to.
        x: (B, D) or (B, H, D).
        dt: as `x`.
        A: (D, N) or (H, D, N).
        B: (B, N) or (B, G, N), one for each of G groups of heads.
        C: as `B`.
        D: (D,) or (H, D).
        z: as `x`.
        dt_bias: (D,) or (H, D).
        dt_softplus: apply softplus to the step size.
        state_batch_indices: (B,), the row of `state` that belongs to each sample.

    Returns:
        The shape and dtype of `x`.

    Raises:
        ShapeError: a size does not fit.
    """
    heads = state.dim() == 4
    if not heads:
        x, dt, A = x.unsqueeze(1), dt.unsqueeze(1), A.unsqueeze(0)
        D, z, dt_bias = (None if t is None else t.unsqueeze(a) for t, a in ((D, 0), (z, 1), (dt_bias, 0)))
    B, C = (t.unsqueeze(1) if t.dim() == 2 else t for t in (B, C))
    wide = accumulation_dtype(torch.promote_types(x.dtype, state.dtype))
    rows = state if state_batch_indices is None else state[state_batch_indices.long()]
    before = (rows if heads else rows.unsqueeze(1)).to(wide)
    batch, count, width, states = before.shape
    expect_shape("x", x, (batch, count, width), "(B, H, D)")
    expect_shape("dt", dt, (batch, count, width), "(B, H, D)")
    expect_shape("A", A, (count, width, states), "(H, D, N)")
    for name, projection in (("B", B), ("C", C)):
        expect_shape(name, projection, (batch, None, states), "(B, G, N)")
        if not projection.shape[1] or count % projection.shape[1]:
            raise ShapeError(f"{name}: expected G groups, a divisor of H = {count}, got {projection.shape[1]}")
    d = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide)
    if dt_softplus:
        d = F.softplus(d)
    B, C = (t.to(wide).repeat_interleave(count // t.shape[1], dim=1).unsqueeze(2) for t in (B, C))
    after = torch.exp(d.unsqueeze(-1) * A.to(wide)) * before + (d * x.to(wide)).unsqueeze(-1) * B
    y = (after * C).sum(-1)
    if D is not None:
        y = y + D.to(wide) * x.to(wide)
    if z is not None:
        y = y * F.silu(z.to(wide))
    after = after if heads else after.squeeze(1)
    with torch.no_grad():
        if state_batch_indices is None:
            state.copy_(after)
        else:
            state[state_batch_indices.long()] = after.to(state.dtype)
    return (y if heads else y.squeeze(1)).to(x.dtype)


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """`selective_state_update` without indices."""
    return selective_state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
