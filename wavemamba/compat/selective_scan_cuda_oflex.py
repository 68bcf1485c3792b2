"""`selective_scan_cuda_oflex`, VMamba's compiled module whose result may be float32 for 16-bit inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wavemamba.compat import raw
from wavemamba.compat.selective_scan_cuda_core import bwd

__all__ = ["bwd", "fwd"]


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
    oflex: bool = True,
) -> list[Tensor]:
    """The scan, in float32 with `oflex` and else in the dtype of `u`, and its intermediates."""
    return list(raw.forward(u.float() if oflex else u, delta, A, B, C, D, None, delta_bias, delta_softplus))


def __getattr__(name: str) -> Any:
    raw.refuse("selective_scan_cuda_oflex", name)
