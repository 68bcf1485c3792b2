"""State-space-dual scan in matrix products: quadratic inside chunks, a short recurrence between them.

Source: Dao and Gu, "Transformers are SSMs", 2024, section 6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, widest_dtype
from wavemamba.ops.selective_scan.torch import linear_recurrence
from wavemamba.ops.ssd_scan.reference import finish


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
) -> tuple[Tensor, Tensor]:
    """See `wavemamba.ops.ssd_scan` for the equation and shapes; `dt` is final.

    With the chunk's cumulative exponents `s_i = sum_{k <= i} dt_k A`, and h the state that enters the chunk:

        y_i = sum_{j <= i} exp(s_i - s_j) (C_i . B_j) dt_j x_j + exp(s_i) C_i h
        h'  = exp(s_Q) h + sum_j exp(s_Q - s_j) dt_j x_j B_j
    """
    wide = accumulation_dtype(widest_dtype(x, dt, A, B, C))
    u, d = x.to(wide), dt.to(wide)
    B, C = B.to(wide), C.to(wide)
    initial = None if initial_state is None else initial_state.to(wide)
    y, last = chunked_scan(d * A.to(wide), d[..., None] * u, B, C, initial, seq_idx, chunk_size)
    return finish(y, u, D, z).to(x.dtype), last


def chunked_scan(
    exponent: Tensor,
    drive: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """`h_l = exp(exponent_l) h_{l-1} + drive_l B_l`, `y_l = C_l h_l`, all of one dtype.

    Args:
        exponent: (B, L, H), <= 0 for a decaying state.
        drive: (B, L, H, P).
        B: (B, L, G, N).
        C: (B, L, G, N).
        initial_state: (B, H, P, N), or None.
        seq_idx: (B, L), or None.
        chunk_size: steps of a chunk.

    Returns:
        y (B, L, H, P) and the last state (B, H, P, N).
    """
    length, heads = exponent.shape[1:]
    groups = B.shape[2]
    size = min(chunk_size, length)
    rest = -length % size  # steps added at the end neither decay nor drive the state
    total = F.pad(exponent, (0, 0, 0, rest)).unflatten(1, (-1, size)).permute(0, 3, 1, 2).cumsum(-1)  # (B, H, c, Q)
    drive, B, C = (
        F.pad(t, (0, 0, 0, 0, 0, rest)).unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4) for t in (drive, B, C)
    )
    chunks = total.shape[2]
    causal = torch.ones(size, size, dtype=torch.bool, device=total.device).tril()
    to_end, through = total[..., -1:] - total, total[..., -1]
    if seq_idx is None:
        inside, last_own, first_own, goes_on = causal, None, None, None
    else:
        ids = F.pad(seq_idx[:, None].to(total.dtype), (0, rest), mode="replicate")[:, 0].unflatten(1, (-1, size))[
            :, None
        ]
        before = torch.cat([ids[:, :, :1, 0], ids[:, :, :-1, -1]], dim=2)  # what the entering state belongs to
        inside = causal & (ids[..., :, None] == ids[..., None, :])
        last_own, first_own = ids == ids[..., -1:], ids == before[..., None]
        goes_on = ids[..., -1] == before
    pairs = (total[..., :, None] - total[..., None, :]).masked_fill(~inside, -torch.inf).exp()  # (B, H, c, Q, Q)
    scores = (C @ B.mT).unsqueeze(2).expand(-1, -1, heads // groups, -1, -1, -1).flatten(1, 2)
    y = (scores * pairs) @ drive

    weight = to_end.exp() if last_own is None else to_end.exp() * last_own
    own = (drive * weight[..., None]).unflatten(1, (groups, -1)).mT @ B.unsqueeze(2)
    own = own.flatten(1, 2).movedim(2, 1)  # (B, c, H, P, N): what each chunk makes of a zero state
    gain = through.exp() if goes_on is None else through.exp() * goes_on
    gain = gain.movedim(2, 1)[..., None, None].expand_as(own)
    if initial_state is not None:
        own = torch.cat([own[:, :1] + gain[:, :1] * initial_state.unsqueeze(1), own[:, 1:]], dim=1)
    left = linear_recurrence(gain, own)
    entering = left[:, :-1]
    first = initial_state.unsqueeze(1) if initial_state is not None else torch.zeros_like(left[:, :1])
    entering = torch.cat([first, entering], dim=1).movedim(1, 2)  # (B, H, c, P, N)
    if chunks > 1 or initial_state is not None:
        reach = total.exp() if first_own is None else total.exp() * first_own
        carried = C.unsqueeze(2) @ entering.unflatten(1, (groups, -1)).mT
        y = y + carried.flatten(1, 2) * reach[..., None]
    return y.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length], left[:, -1]
