"""State-space-dual scan by the Triton kernels of the mamba-ssm package: its dtypes, its limits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Case
from wavemamba.ops.packed import sequence_starts

_CHUNKS = (16, 256)
"""Steps of a chunk, a power of two: at least what a tensor core multiplies, at most what the package uses."""


def refuses(case: Case) -> str | None:
    """What the package lacks or cannot do; it cannot be imported without its compiled part."""
    return availability.cuda_package(case, "mamba_ssm") or availability.chunk_kernels(case)


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

    The package takes the sequence that the initial state enters to have number 0.

    Source: the interface of mamba-ssm 2.2, `mamba_ssm/ops/triton/ssd_combined.py`.
    """
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    least, most = _CHUNKS
    y, last = mamba_chunk_scan_combined(
        x,
        dt.float(),
        A.float(),
        B.to(x.dtype),
        C.to(x.dtype),
        min(max(least, 1 << (chunk_size - 1).bit_length()), most),
        D=None if D is None else D.float(),
        z=None if z is None else z.to(x.dtype),
        initial_states=None if initial_state is None else initial_state.float(),
        seq_idx=None if seq_idx is None else sequence_starts(seq_idx, None).cumsum(1, dtype=torch.int32),
        dt_limit=(-math.inf, math.inf),
        return_final_states=True,
    )
    return y, last
