"""`selective_scan_cuda`, mamba-ssm's compiled module."""

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
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """The scan, its intermediates, and with a gate the gated scan; see `selective_scan_fn` for the shapes."""
    y, kept = raw.forward(u, delta, A, B, C, D, None, delta_bias, delta_softplus)
    if z is None:
        return [y, kept]
    return [y, kept, raw.forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus)[0]]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """Gradients of u, delta, A, B, C, D, delta_bias, with a gate that of z, and where asked the gated scan anew.

    Where `dz` is given, the gradient of z is written to it.
    """
    *most, dgate, dbias = raw.gradients((u, delta, A, B, C, D, z, delta_bias), delta_softplus, dout)
    found: list[Tensor | None] = [*most, dbias]
    if z is not None and dgate is not None:
        found.append(dgate if dz is None else dz.copy_(dgate))
        if recompute_out_z:
            found.append(raw.forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus)[0])
    return found


def __getattr__(name: str) -> Any:
    raw.refuse("selective_scan_cuda", name)
