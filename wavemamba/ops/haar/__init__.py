"""Haar packet transform of channels-last maps, fused with the layout of its subbands.

A packet transform splits *every* band again at each level, so that `levels` levels give `4**levels` bands, each
`2**levels` times smaller than the map. Band `k` has the base-4 digits `b1 b2 ...`, the coarsest split (made first)
leading; digit 0 is LL, 1 LH, 2 HL, 3 HH.

Every backend is one function, `run(HaarInputs) -> y`, and one linear map. With Q the orthonormal transform followed by
the layout,

    inverse False: y = scale * Q x,    inverse True: y = scale * Q^T x

on (B, H, W, C) maps whose sides are divisible by 2**levels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from wavemamba.checks import expect_levels, expect_shape
from wavemamba.errors import ShapeError
from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Backend, Case, resolve, runs_everything
from wavemamba.ops.dispatch.operands import expect_operands
from wavemamba.ops.haar import op, reference, torch
from wavemamba.ops.haar.layout import LAYOUTS, Layout, choose_layout
from wavemamba.ops.haar.op import HaarInputs

__all__ = ["BACKENDS", "LAYOUTS", "Layout", "from_haar_map", "haar_analysis", "haar_synthesis", "to_haar_map"]

_DEEPEST = 3
"""Levels that the kernels have room for."""


def _shallow(refuses: Callable[[Case], str | None]) -> Callable[[Case], str | None]:
    too_deep = f"has kernels for up to {_DEEPEST} levels"
    return lambda case: too_deep if case.sizes.get("levels", 0) > _DEEPEST else refuses(case)


BACKENDS: tuple[Backend, ...] = (
    Backend("triton", _shallow(availability.triton), functools.partial(op.run, "triton")),
    Backend("numba", _shallow(availability.numba), functools.partial(op.run, "numba")),
    Backend("torch", runs_everything, torch.run),
    Backend("reference", runs_everything, reference.run, slow_on_gpu=True),
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
    side = _check(x, levels)
    y = _run(x, levels, "interleaved", 1.0, False, backend)
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
    expect_operands(bands=bands)
    expect_shape("bands", bands, (None, None, None, side * side, None), "(B, h, w, 4**levels, C)")
    grid = bands.unflatten(3, (side, side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return _run(grid, levels, "interleaved", 1.0, True, backend)


def to_haar_map(x: Tensor, levels: int, layout: Layout, *, backend: str = "auto") -> Tensor:
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
        backend: "auto", "reference", "torch", "numba" or "triton".

    Returns:
        (B, H, W, C) in the dtype of `x`.

    Raises:
        ShapeError: a side is not divisible, or the rank is wrong.
        ConfigError: the layout is unknown.

    Source: Phung et al., "DiMSUM", 2024, section 4.1 and figure 2.
    """
    layout = choose_layout(layout)
    _check(x, levels)
    return _run(x, levels, layout, 0.5**levels, False, backend)


def from_haar_map(x: Tensor, levels: int, layout: Layout, *, backend: str = "auto") -> Tensor:
    """Exact inverse of `to_haar_map`: the same arguments, the same shapes, the same errors."""
    layout = choose_layout(layout)
    _check(x, levels)
    return _run(x, levels, layout, 2.0**levels, True, backend)


def _check(x: Tensor, levels: int) -> int:
    expect_levels(levels)
    expect_operands(x=x)
    expect_shape("x", x, (None, None, None, None), "(B, H, W, C)", "channels come last")
    side = 2**levels
    height, width = x.shape[1:3]
    if height < 1 or width < 1 or height % side or width % side:
        raise ShapeError(
            f"x: expected sides divisible by {side} for {levels} levels, got {(height, width)}; pad the map"
        )
    return int(side)


def _run(x: Tensor, levels: int, layout: Layout, scale: float, inverse: bool, argument: str) -> Tensor:
    case = Case(op="haar", device=x.device.type, dtype=x.dtype, sizes={"levels": levels})
    y: Tensor = resolve(BACKENDS, case, argument)(HaarInputs(x, levels, layout, scale, inverse))
    return y
