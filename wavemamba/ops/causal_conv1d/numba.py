"""Causal depthwise convolution on the CPU: the numba kernels as `torch.library` ops with their gradients."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from wavemamba.ops.causal_conv1d import numba_kernels as kernels
from wavemamba.ops.causal_conv1d.numba_kernels import BLOCK
from wavemamba.ops.cpu.runtime import (
    address,
    checked_order,
    contiguous,
    empty_rows,
    float_rows,
    launch,
    rows,
    sum_slices,
)
from wavemamba.ops.dispatch.differentiable import Differentiable, refuse_second_derivative


class _Inputs:
    """The inputs as the kernels read them: float32, converted or copied only where they must be."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, order: Tensor | None
    ) -> None:
        self.x, self.weight = float_rows(x), contiguous(weight)
        self.bias = None if bias is None else contiguous(bias)
        self.initial = None if initial_state is None else contiguous(initial_state)
        self.order = checked_order(order, x.shape[1])
        self.items = x.shape[0] * -(-x.shape[2] // BLOCK)

    def fields(self) -> dict[str, Any]:
        """As fields of a job, valid while this object lives."""
        _, length, channels = self.x.shape
        sizes = {
            "length": length,
            "channels": channels,
            "width": self.weight.shape[1],
            "blocks": -(-channels // BLOCK),
        }
        return sizes | {
            "x": rows(self.x),
            "order": address(self.order),
            "weight": address(self.weight),
            "bias": address(self.bias),
            "initial": address(self.initial),
        }


def _compute_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, initial_state: Tensor | None, order: Tensor | None
) -> Tensor:
    inputs = _Inputs(x, weight, bias, initial_state, order)
    y = empty_rows(x.shape)
    launch(kernels.forward, kernels.FORWARD.fill(inputs.items, **inputs.fields(), silu=silu, y=rows(y)))
    return y.to(x.dtype)


_conv_op = torch.library.custom_op("wavemamba::causal_conv1d_numba", _compute_conv, mutates_args=(), device_types="cpu")


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
    inputs = _Inputs(x, weight, bias, initial_state, order)
    dy = float_rows(dy)
    batch, _, channels = x.shape
    new = functools.partial(torch.empty, dtype=torch.float32)
    dx = empty_rows(x.shape)
    dweight, dbias = new(batch, *weight.shape), new(batch, channels)
    dinitial = new(batch, weight.shape[1] - 1, channels)
    job = kernels.BACKWARD.fill(
        inputs.items,
        **inputs.fields(),
        silu=silu,
        dy=rows(dy),
        dx=rows(dx),
        dweight=dweight.data_ptr(),
        dbias=dbias.data_ptr(),
        dinitial=dinitial.data_ptr(),
    )
    launch(kernels.backward, job)
    gradients = (dx, sum_slices(dweight), sum_slices(dbias), dinitial)
    given = (x, weight, bias, initial_state)
    return tuple(  # type: ignore[return-value]  # mypy does not count the four
        new(0) if tensor is None else gradient.to(tensor.dtype)
        for tensor, gradient in zip(given, gradients, strict=True)
    )


_conv_backward_op = torch.library.custom_op(
    "wavemamba::causal_conv1d_numba_backward", _compute_conv_backward, mutates_args=(), device_types="cpu"
)


@_conv_backward_op.register_fake
def _(dy, x, weight, bias, silu, initial_state, order):  # type: ignore[no-untyped-def]  # as above
    given = (x, weight, bias, initial_state)
    return tuple(x.new_empty(0, dtype=torch.float32) if t is None else t.new_empty(t.shape) for t in given)


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
    """Channels in vector lanes, sums in float32; see `wavemamba.ops.causal_conv1d` for the equation and shapes."""
    y: Tensor = _conv(x, weight, bias, silu, initial_state, order)
    return y
