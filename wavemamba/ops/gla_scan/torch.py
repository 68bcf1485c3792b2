"""Gated linear attention in matrix products, chunk by chunk; see `wavemamba.ops.chunked`."""

from __future__ import annotations

from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, widest_dtype
from wavemamba.ops.chunked import Chunks, pair_weights


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
    chunks = Chunks(q.shape[1], chunk_size, seq_idx)
    queries, keys, values, exponent = (chunks.split(t.to(wide)) for t in (q, k, v, log_decay))  # (B, c, H, Q, ...)
    pairs = pair_weights(queries, keys, exponent.exp())
    y = chunks.weigh(chunks.of_same(pairs.weights), values)
    if chunks.alone and initial_state is None and not return_last_state:
        return chunks.join(y).to(v.dtype), None
    own = chunks.of_last(pairs.key).mT @ chunks.of_last(values)  # (B, c, H, K, V)
    first = None if initial_state is None else initial_state.to(wide)
    entering, last = chunks.pass_on(own, pairs.decay.mT, first)
    y = y + chunks.of_first(pairs.query @ entering)
    return chunks.join(y).to(v.dtype), last
