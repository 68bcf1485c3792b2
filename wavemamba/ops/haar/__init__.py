"""Haar packet transform of channels-last maps, fused with the layout of its subbands.

A packet transform splits *every* band again at each level, so that `levels` levels give `4**levels` bands, each
`2**levels` times smaller than the map. Band `k` has the base-4 digits `b1 b2 ...`, the coarsest split (made first)
leading; digit 0 is LL, 1 LH, 2 HL, 3 HH.

Every backend implements one linear map. With Q the orthonormal transform followed by the layout, and P the gather of
rows by `order`,

    run(x, levels, layout, order, scale, inverse) -> y

    inverse False: y = scale * P Q x,    inverse True: y = scale * Q^T P^T x

on (B, H, W, C) maps whose sides are divisible by 2**levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from wavemamba.checks import expect_floating, expect_levels, expect_shape
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Backend, Case, any_requires_grad, resolve
from wavemamba.ops.dispatch.loading import import_numba

__all__ = ["BACKENDS", "LAYOUTS", "Layout", "from_haar_map", "haar_analysis", "haar_synthesis", "to_haar_map"]

Layout = Literal["channel", "interleaved", "mosaic"]
LAYOUTS: tuple[Layout, ...] = ("channel", "interleaved", "mosaic")
_DEEP = "more than 3 levels"


def _load_reference() -> Callable[..., Any]:
    from wavemamba.ops.haar.reference import run

    return run


def _load_torch() -> Callable[..., Any]:
    from wavemamba.ops.haar.torch import run

    return run


def _load_numba() -> Callable[..., Any]:
    import_numba("haar")
    from wavemamba.ops.haar.numba import run

    return run


def _load_triton() -> Callable[..., Any]:
    from wavemamba.ops.haar.triton import run

    return run


def _shallow(refuses: Callable[[Case], str | None]) -> Callable[[Case], str | None]:
    return lambda case: "has kernels for up to 3 levels" if _DEEP in case.features else refuses(case)


BACKENDS: tuple[Backend, ...] = (
    Backend("triton", _shallow(availability.triton), _load_triton),
    Backend("numba", _shallow(availability.numba), _load_numba),
    Backend("torch", lambda case: None, _load_torch),
    Backend("reference", lambda case: None, _load_reference, slow_on_gpu=True),
)


def haar_analysis(x: Tensor, levels: int, *, backend: str = "auto") -> Tensor:
    """Orthonormal Haar packet transform of a channels-last map.

    Each 2x2 cell `[[a, b], [c, d]]` gives LL = (a + b + c + d) / 2, LH = (a + b - c - d) / 2,
    HL = (a - b + c - d) / 2, HH = (a - b - c + d) / 2.

    Args:
        x: (B, H, W, C), floating; H and W divisible by 2**levels.
        levels: number of times that every band is split, >= 0.
        backend: "auto", "reference", "torch", "numba" or "triton".

    Returns:
        (B, H / 2**levels, W / 2**levels, 4**levels, C), bands ordered coarse split first.

    Raises:
        ShapeError: a side is not divisible, or the rank is wrong.
    """
    side = _check(x, levels, "interleaved")
    y = _run(x, levels, "interleaved", None, 1.0, False, backend)
    return y.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(3, 4)


def haar_synthesis(bands: Tensor, levels: int, *, backend: str = "auto") -> Tensor:
    """Exact inverse of `haar_analysis`.

    Args:
        bands: (B, h, w, 4**levels, C), floating.
        levels: number of splits to undo, >= 0.
        backend: "auto", "reference", "torch", "numba" or "triton".

    Returns:
        (B, h * 2**levels, w * 2**levels, C).

    Raises:
        ShapeError: the number of bands is not 4**levels, or the rank is wrong.
    """
    expect_levels(levels)
    side = 2**levels
    expect_shape("bands", bands, (None, None, None, side * side, None), "(B, h, w, 4**levels, C)")
    expect_floating("bands", bands)
    grid = bands.unflatten(3, (side, side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return _run(grid, levels, "interleaved", None, 1.0, True, backend)


def to_haar_map(
    x: Tensor, levels: int, layout: Layout, *, order: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Haar packet transform divided by 2**levels, its bands put back on an (H, W) grid.

    With `s = 2**levels` and band `k = s * p1 + p2` of channel `c` at coarse place `(h, w)`:

    - "mosaic": token `(p1 * H / s + h, p2 * W / s + w)`, channel c: every subband is one tile.
    - "interleaved": token `(s * h + p1, s * w + p2)`, channel c: the bands of one place side by side.
    - "channel": token `(s * h + p1', s * w + p2')`, channel c', where `k * C + c = s^2 * c' + s * p1' + p2'`: every
      token mixes all bands of a few channels. What the released DiMSUM weights need.

    Args:
        x: (B, H, W, C), floating; H and W divisible by 2**levels.
        levels: number of times that every band is split, >= 0.
        layout: "mosaic", "interleaved" or "channel".
        order: (H * W,) int64, a permutation: row `l` of the result is token `order[l]` of the map.
        backend: "auto", "reference", "torch", "numba" or "triton".

    Returns:
        (B, H, W, C) in the dtype of `x`; with `order` the H * W rows are its sequence.

    Raises:
        ShapeError: a side is not divisible, or the rank is wrong.
        ConfigError: the layout is unknown.

    Source: Phung et al., "DiMSUM", 2024, section 4.1 and figure 2.
    """
    _check(x, levels, layout, order)
    return _run(x, levels, layout, order, 0.5**levels, False, backend)


def from_haar_map(
    x: Tensor, levels: int, layout: Layout, *, order: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Exact inverse of `to_haar_map`: the same arguments, the same shapes, the same errors."""
    _check(x, levels, layout, order)
    return _run(x, levels, layout, order, 2.0**levels, True, backend)


def _check(x: Tensor, levels: int, layout: str, order: Tensor | None = None) -> int:
    if layout not in LAYOUTS:
        raise ConfigError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    expect_levels(levels)
    expect_shape("x", x, (None, None, None, None), "(B, H, W, C)", "channels come last")
    expect_floating("x", x)
    side = 2**levels
    height, width = x.shape[1:3]
    if height % side or width % side:
        raise ShapeError(
            f"x: expected sides divisible by {side} for {levels} levels, got {(height, width)}; pad the map"
        )
    if order is not None:
        expect_shape("order", order, (height * width,), "(H * W,)")
    return int(side)


def _run(
    x: Tensor, levels: int, layout: Layout, order: Tensor | None, scale: float, inverse: bool, argument: str
) -> Tensor:
    case = Case(
        op="haar_map",
        device=x.device.type,
        dtype=x.dtype,
        needs_grad=any_requires_grad(x),
        elements=x.numel(),
        features=(_DEEP,) if levels > 3 else (),
    )
    y: Tensor = resolve(BACKENDS, case, argument)(x, levels, layout, order, scale, inverse)
    return y
