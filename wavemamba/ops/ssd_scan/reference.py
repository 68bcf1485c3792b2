"""State-space-dual scan, the definition: one step after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, widest_dtype


def run(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int,
    return_last_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `wavemamba.ops.ssd_scan` for the equation and shapes; `dt` is final."""
    wide = accumulation_dtype(widest_dtype(x, dt, A, B, C))
    heads = x.shape[2]
    u, d, rate = x.to(wide), dt.to(wide), A.to(wide)
    B, C = (t.to(wide).repeat_interleave(heads // t.shape[2], dim=2) for t in (B, C))
    state = u.new_zeros(x.shape[0], heads, x.shape[3], B.shape[3])
    if initial_state is not None:
        state = state + initial_state.to(wide)
    ys = []
    for step in range(x.shape[1]):
        if seq_idx is not None and step > 0:
            same = seq_idx[:, step] == seq_idx[:, step - 1]
            state = torch.where(same[:, None, None, None], state, 0)
        decay = torch.exp(d[:, step] * rate)[..., None, None]
        drive = (d[:, step, :, None] * u[:, step])[..., None] * B[:, step, :, None, :]
        state = decay * state + drive
        ys.append((state * C[:, step, :, None, :]).sum(-1))
    y = torch.stack(ys, dim=1) if ys else u
    return finish(y, u, D, z).to(x.dtype), state


def finish(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """`y + D x`, times `SiLU(z)`; D is (H,) or (H, P)."""
    if D is not None:
        skip = D.to(y.dtype)
        y = torch.addcmul(y, skip if skip.dim() == 2 else skip[:, None], u)
    return y if z is None else y * F.silu(z.to(y.dtype))
