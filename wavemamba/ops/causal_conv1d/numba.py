"""Causal depthwise convolution on the CPU: the numba kernels as `torch.library` ops with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wavemamba.ops.causal_conv1d import numba_kernels as kernels
from wavemamba.ops.causal_conv1d.numba_kernels import BLOCK, Sizes
from wavemamba.ops.numba_runtime import address, contiguous, float_rows, parallel, refuse_second_derivative, rows


def _sizes(x: Tensor, weight: Tensor, silu: bool, order: Tensor | None) -> Sizes:
    _, length, channels = x.shape
    return Sizes(length, channels, weight.shape[1], -(-channels // BLOCK), address(order), int(silu))


@torch.library.custom_op("wavemamba::causal_conv1d_numba", mutates_args=(), device_types="cpu")
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, initial_state: Tensor | None, order: Tensor | None
) -> Tensor:
    dtype = x.dtype
    x = float_rows(x)
    weight, bias, initial_state = contiguous(weight), contiguous(bias), contiguous(initial_state)
    order = None if order is None else order.contiguous()
    sizes = _sizes(x, weight, silu, order)
    y = x.new_empty(x.shape)
    parallel(
        kernels.forward,
        x.shape[0] * sizes.blocks,
        sizes,
        rows(x),
        address(weight),
        address(bias),
        address(initial_state),
        rows(y),
    )
    return y.to(dtype)


@_conv.register_fake
def _(x, weight, bias, silu, initial_state, order):  # type: ignore[no-untyped-def]  # as above
    return x.new_empty(x.shape)


@torch.library.custom_op("wavemamba::causal_conv1d_numba_backward", mutates_args=(), device_types="cpu")
def _conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    order: Tensor | None,
) -> list[Tensor]:
    """Gradients of x, weight, bias, initial_state; empty where there is no such input."""
    inputs = (x, weight, bias, initial_state)
    x, dy = float_rows(x), float_rows(dy)
    weight, bias, initial_state = contiguous(weight), contiguous(bias), contiguous(initial_state)
    order = None if order is None else order.contiguous()
    sizes = _sizes(x, weight, silu, order)
    batch, _, channels = x.shape
    dx = x.new_empty(x.shape)
    dweight, dbias = x.new_empty(batch, *weight.shape), x.new_empty(batch, channels)
    dinitial = x.new_empty(batch, weight.shape[1] - 1, channels)
    parallel(
        kernels.backward,
        batch * sizes.blocks,
        sizes,
        rows(x),
        address(weight),
        address(bias),
        address(initial_state),
        rows(dy),
        rows(dx),
        address(dweight),
        address(dbias),
        address(dinitial),
    )
    gradients = (dx, dweight.sum(0), dbias.sum(0), dinitial)
    return [
        x.new_empty(0) if given is None else gradient.to(given.dtype)
        for given, gradient in zip(inputs, gradients, strict=True)
    ]


@_conv_backward.register_fake
def _(dy, x, weight, bias, silu, initial_state, order):  # type: ignore[no-untyped-def]  # as above
    given = (x, weight, bias, initial_state)
    return [x.new_empty(0, dtype=torch.float32) if t is None else t.new_empty(t.shape) for t in given]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, silu, initial_state, order = inputs
    ctx.save_for_backward(x, weight, bias, initial_state, order)
    ctx.silu = silu


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, initial_state, order = ctx.saved_tensors
    dx, dweight, dbias, dinitial = _conv_backward(dy, x, weight, bias, ctx.silu, initial_state, order)
    return (
        dx,
        dweight,
        None if bias is None else dbias,
        None,
        None if initial_state is None else dinitial,
        None,
    )


_conv.register_autograd(_gradients, setup_context=_setup_context)
_conv_backward.register_autograd(refuse_second_derivative("causal_conv1d"))


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    """Channels in vector lanes, sums in float32; see `wavemamba.ops.causal_conv1d` for the equation and shapes."""
    y: Tensor = _conv(x, weight, bias, silu, initial_state, order)
    return y
