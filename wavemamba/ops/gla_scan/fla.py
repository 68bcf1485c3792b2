"""Gated linear attention by the Triton kernels of flash-linear-attention: its dtypes, its limits."""

from __future__ import annotations

from torch import Tensor

from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Case


def refuses(case: Case) -> str | None:
    """What the package lacks or cannot do."""
    if "seq_idx" in case.features:
        return "fla's kernel takes one sequence a row"
    return availability.fla(case) or availability.chunk_kernels(case)


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
    """See `wavemamba.ops.gla_scan` for the equation and shapes; the package chooses the chunks itself.

    Source: the interface of fla-core 0.6, `fla/ops/gla/chunk.py`.
    """
    from fla.ops.gla import chunk_gla

    y, last = chunk_gla(
        q=q.to(v.dtype),
        k=k.to(v.dtype),
        v=v,
        g=log_decay.float(),
        scale=1.0,
        initial_state=None if initial_state is None else initial_state.float(),
        output_final_state=return_last_state,
    )
    return y, last
