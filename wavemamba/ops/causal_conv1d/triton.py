"""Causal depthwise convolution on a GPU: the Triton kernels as `torch.library` ops with their gradients.

Opaque to the compiler (`custom_op`), as the scan's are, and for the same reasons.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wavemamba.ops.causal_conv1d import triton_kernels as kernels
from wavemamba.ops.dispatch.differentiable import Differentiable, refuse_second_derivative
from wavemamba.ops.gpu.runtime import (
    dense_rows,
    expect_indexable,
    launch,
    rows_of,
    tile_width,
)

STEPS = 8
"""Steps of a forward tile."""
BACKWARD_ROWS = 32
"""Steps that a backward program walks; each needs 2 * (width - 1) more around them."""
BACKWARD_STEPS = 4
"""Steps whose loads are issued together."""


def _wide(channels: int, *tensors: Tensor) -> bool:
    """Whether an offset inside one batch element needs 64 bits."""
    return any(t.shape[1] * max(t.stride(1), channels) >= 2**31 for t in tensors)


def _compute_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, initial_state: Tensor | None, order: Tensor | None
) -> Tensor:
    batch, length, channels = x.shape
    expect_indexable(length)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x = dense_rows(x)
    initial = None if initial_state is None else dense_rows(initial_state)
    block = tile_width(channels, 128)
    launch(
        kernels.forward,
        batch * -(-length // STEPS) * -(-channels // block),
        x,
        x,
        weight,
        None if bias is None else bias.contiguous(),
        initial if weight.shape[1] > 1 else None,
        None if order is None else order.contiguous(),
        y,
        length,
        channels,
        *rows_of(x),
        *weight.stride(),
        *rows_of(initial),
        WIDTH=weight.shape[1],
        STEPS=STEPS,
        BLOCK=block,
        SILU=silu,
        WIDE=_wide(channels, x),
    )
    return y


_conv_op = torch.library.custom_op("wavemamba::causal_conv1d_triton", _compute_conv, mutates_args=())


@_conv_op.register_fake
def _(x, weight, bias, silu, initial_state, order):  # type: ignore[no-untyped-def]  # as above
    return x.new_empty(x.shape)


def _compute_conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    order: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, initial_state; empty where there is no such input."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, dy = dense_rows(x), dense_rows(dy)
    initial = None if initial_state is None or width == 1 else dense_rows(initial_state)
    first_step = 0 if initial is None else 1 - width
    parts = batch * -(-(length - first_step) // BACKWARD_ROWS)
    new = dx.new_empty
    dweight = new(parts, width, channels, dtype=torch.float32)
    dbias = None if bias is None else new(parts, channels, dtype=torch.float32)
    dinitial = None if initial_state is None else new(initial_state.shape, dtype=torch.float32)
    block = tile_width(channels, 128)
    launch(
        kernels.backward,
        parts * -(-channels // block),
        x,
        dy,
        x,
        weight,
        None if bias is None else bias.contiguous(),
        initial,
        None if order is None else order.contiguous(),
        dx,
        dweight,
        dbias,
        None if initial is None else dinitial,
        length,
        first_step,
        channels,
        *rows_of(dy, x),
        *weight.stride(),
        *rows_of(initial),
        WIDTH=width,
        ROWS=BACKWARD_ROWS,
        STEPS=BACKWARD_STEPS,
        BLOCK=block,
        SILU=silu,
        WIDE=_wide(channels, x, dy),
        warps=1,
    )
    gradients = (dx, dweight.sum(0).T, None if dbias is None else dbias.sum(0), dinitial)
    given = (x, weight, bias, initial_state)
    return tuple(  # type: ignore[return-value]  # mypy does not count the four
        new(0) if tensor is None or gradient is None else gradient.to(tensor.dtype).contiguous()
        for tensor, gradient in zip(given, gradients, strict=True)
    )


_conv_backward_op = torch.library.custom_op(
    "wavemamba::causal_conv1d_triton_backward", _compute_conv_backward, mutates_args=()
)


@_conv_backward_op.register_fake
def _(dy, x, weight, bias, silu, initial_state, order):  # type: ignore[no-untyped-def]  # as above
    given = (x, weight, bias, initial_state)
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in given)


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


_conv = Differentiable("causal_conv1d", _compute_conv, _conv_op, _setup_context, _gradients)
_conv_backward = refuse_second_derivative("causal_conv1d", _compute_conv_backward, _conv_backward_op)


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    """Sums in float32; see `wavemamba.ops.causal_conv1d` for the equation and shapes."""
    y: Tensor = _conv(x, weight, bias, silu, initial_state, order)
    return y
