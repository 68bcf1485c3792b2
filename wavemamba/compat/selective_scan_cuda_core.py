"""`selective_scan_cuda_core`, VMamba's compiled module: no gate."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wavemamba.compat import raw

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
) -> list[Tensor]:
    """The scan and its intermediates; see `selective_scan_fn` for the shapes. `nrows` is a launch size, accepted."""
    return list(raw.forward(u, delta, A, B, C, D, None, delta_bias, delta_softplus))


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor | None]:
    """Gradients of u, delta, A, B, C, D, delta_bias."""
    *most, _, dbias = raw.gradients((u, delta, A, B, C, D, None, delta_bias), delta_softplus, dout)
    return [*most, dbias]


def __getattr__(name: str) -> Any:
    raw.refuse("selective_scan_cuda_core", name)
