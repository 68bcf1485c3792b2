"""State-space-dual scan in matrix products, chunk by chunk; see `wavemamba.ops.chunked`."""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, widest_dtype
from wavemamba.ops.chunked import Chunks, pair_weights
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
    return_last_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `wavemamba.ops.ssd_scan` for the equation and shapes; `dt` is final."""
    wide = accumulation_dtype(widest_dtype(x, dt, A, B, C))
    u, d = x.to(wide), dt.to(wide)
    initial = None if initial_state is None else initial_state.to(wide)
    y, last = chunked_scan(
        d * A.to(wide), d[..., None] * u, B.to(wide), C.to(wide), initial, seq_idx, chunk_size, return_last_state
    )
    return finish(y, u, D, z).to(x.dtype), last


def chunked_scan(
    exponent: Tensor,
    drive: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int,
    return_last_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """`h_l = exp(exponent_l) h_{l-1} + drive_l B_l^T`, `y_l = h_l C_l`, all of one dtype.

    All channels of a head decay alike, and the heads of a group share `B` and `C`. So the products of `B` and `C` are
    taken once a group, and the decays act on heads.

    Args:
        exponent: (B, L, H), <= 0 for a decaying state.
        drive: (B, L, H, P).
        B: (B, L, G, N).
        C: (B, L, G, N).
        initial_state: (B, H, P, N), or None.
        seq_idx: (B, L), or None.
        chunk_size: steps of a chunk.
        return_last_state: whether the state is asked for.

    Returns:
        y (B, L, H, P) and the last state (B, H, P, N), or None.
    """
    width, groups = drive.shape[3], B.shape[2]
    chunks = Chunks(drive.shape[1], chunk_size, seq_idx)
    keys, queries = chunks.split(B), chunks.split(C)  # (B, c, G, Q, N)
    value = chunks.split(drive)  # (B, c, H, Q, P)
    decay = chunks.split(exponent.unsqueeze(-1)).exp()  # (B, c, H, Q, 1)
    ones = torch.ones_like(decay)
    pairs = pair_weights(ones, ones, decay)
    scores = (queries @ keys.mT).tril()
    weights = (scores.unsqueeze(3) * pairs.weights.unflatten(2, (groups, -1))).flatten(2, 3)
    y = chunks.weigh(chunks.of_same(weights), value)
    if chunks.alone and initial_state is None and not return_last_state:
        return chunks.join(y), None

    leaving = chunks.of_last(value * pairs.key).unflatten(2, (groups, -1))  # (B, c, G, H / G, Q, P)
    own = chunks.of_last(keys).mT @ leaving.transpose(3, 4).flatten(4)  # (B, c, G, N, H / G * P)
    own = own.unflatten(-1, (-1, width))
    gain = pairs.decay.unflatten(2, (groups, 1, -1)).squeeze(-1)  # (B, c, G, 1, H / G, 1)
    if initial_state is not None:
        initial_state = initial_state.unflatten(1, (groups, -1)).movedim(-1, 2)
    entering, last = chunks.pass_on(own, gain, initial_state)
    carried = (queries @ entering.flatten(4)).unflatten(-1, (-1, width)).transpose(3, 4).flatten(2, 3)
    y = y + chunks.of_first(carried * pairs.query)
    return chunks.join(y), last.movedim(2, -1).flatten(1, 2)
