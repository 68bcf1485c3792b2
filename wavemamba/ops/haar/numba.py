"""Haar packet map on the CPU: the numba kernel as a `torch.library` op, whose gradient is the op the other way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wavemamba.ops.cpu.runtime import address, checked_order, empty_rows, float_rows, launch, rows
from wavemamba.ops.dispatch.differentiable import Differentiable
from wavemamba.ops.haar import numba_kernels as kernels
from wavemamba.scans import invert_permutation

_LAYOUTS = {"channel": kernels.CHANNEL, "interleaved": kernels.INTERLEAVED, "mosaic": kernels.MOSAIC}


def _compute_haar_map(x: Tensor, levels: int, layout: str, order: Tensor | None, scale: float, inverse: bool) -> Tensor:
    batch, height, width, channels = x.shape
    side = 2**levels
    source = float_rows(x)
    if source.stride(1) != width * source.stride(2):
        source = source.contiguous()
    target = empty_rows(x.shape)
    order = checked_order(order, height * width)
    steps = None if order is None else invert_permutation(order)
    job = kernels.JOB.fill(
        batch * (height // side) * (width // side),
        levels=levels,
        height=height // side,
        width=width // side,
        channels=channels,
        layout=_LAYOUTS[layout],
        steps=address(steps),
        inverse=inverse,
        scale=scale,
        x=rows(source.flatten(1, 2)),
        y=rows(target.flatten(1, 2)),
    )
    launch(kernels.haar_map, job)
    return target.to(x.dtype)


_haar_map_op = torch.library.custom_op(
    "wavemamba::haar_map_numba", _compute_haar_map, mutates_args=(), device_types="cpu"
)


@_haar_map_op.register_fake
def _(x, levels, layout, order, scale, inverse):  # type: ignore[no-untyped-def]  # as above
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.levels, ctx.layout, order, ctx.scale, ctx.inverse = inputs
    ctx.save_for_backward(order)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (order,) = ctx.saved_tensors
    return _haar_map(dy, ctx.levels, ctx.layout, order, ctx.scale, not ctx.inverse), None, None, None, None, None


_haar_map = Differentiable("haar_map", _compute_haar_map, _haar_map_op, _setup_context, _gradients)


def run(x: Tensor, levels: int, layout: str, order: Tensor | None, scale: float, inverse: bool) -> Tensor:
    """Transform, layout and order in one pass; see `wavemamba.ops.haar` for the map and shapes."""
    y: Tensor = _haar_map(x, levels, layout, order, scale, inverse)
    return y
