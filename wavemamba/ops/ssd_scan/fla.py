"""State-space-dual scan by the Triton kernels of flash-linear-attention, which know it as a scalar decay a head."""

from __future__ import annotations

from torch import Tensor

from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Case
from wavemamba.ops.ssd_scan.reference import finish


def refuses(case: Case) -> str | None:
    """What the package lacks or cannot do."""
    if "seq_idx" in case.features:
        return "fla's kernel takes one sequence a row"
    return availability.fla(case) or availability.chunk_kernels(case)


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
    """See `wavemamba.ops.ssd_scan` for the equation and shapes; `dt` is final.

    The package's state is (B, H, N, P), and each head has its own keys and queries. It chooses the chunks itself.

    Source: the interface of fla-core 0.6, `fla/ops/simple_gla/chunk.py`.
    """
    from fla.ops.simple_gla import chunk_simple_gla

    heads = x.shape[2] // B.shape[2]
    u, d = x.float(), dt.float()
    y, last = chunk_simple_gla(
        q=C.to(x.dtype).repeat_interleave(heads, dim=2),
        k=B.to(x.dtype).repeat_interleave(heads, dim=2),
        v=(d[..., None] * u).to(x.dtype),
        g=d * A.float(),
        scale=1.0,
        initial_state=None if initial_state is None else initial_state.float().mT.contiguous(),
        output_final_state=return_last_state,
    )
    return finish(y.float(), u, D, z).to(x.dtype), None if last is None else last.mT
