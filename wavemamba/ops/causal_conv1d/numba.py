"""Causal depthwise convolution on the CPU: what the numba kernels are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from wavemamba.ops.causal_conv1d import numba_kernels as kernels
from wavemamba.ops.causal_conv1d.numba_kernels import BLOCK
from wavemamba.ops.causal_conv1d.op import ConvInputs
from wavemamba.ops.cpu.runtime import launch, sum_slices
from wavemamba.ops.cpu.tensors import (
    address,
    checked_order,
    contiguous,
    empty_rows,
    float_rows,
    kernel_dtype,
    kernel_rows,
    rows,
)
from wavemamba.ops.packed import first_steps


class _Job:
    """The inputs as the kernels read them: float32, converted or copied only where they must be.

    Args:
        inputs: of the op.
        read: makes the rows that a kernel reads; those of the forward pass may be bfloat16.
    """

    def __init__(self, inputs: ConvInputs, read: Callable[[Tensor], Tensor] = float_rows) -> None:
        self._x, self._weight = read(inputs.x), contiguous(inputs.weight.t())
        self._bias = None if inputs.bias is None else contiguous(inputs.bias)
        self._initial = None if inputs.initial_state is None else contiguous(inputs.initial_state)
        self._order = checked_order(inputs.order, inputs.x.shape[1])
        before = inputs.weight.shape[1] - 1
        self._first = None
        if inputs.seq_idx is not None:
            self._first = first_steps(inputs.seq_idx, inputs.order, before).contiguous()
        self._silu = inputs.silu
        self._blocks = -(-inputs.x.shape[2] // BLOCK)
        self.items = inputs.x.shape[0] * self._blocks

    def fields(self) -> dict[str, Any]:
        """As fields of a job, valid while this object lives."""
        _, length, channels = self._x.shape
        return {
            "length": length,
            "channels": channels,
            "width": self._weight.shape[0],
            "blocks": self._blocks,
            "silu": self._silu,
            "x": rows(self._x, may_be_narrow=True),
            "order": address(self._order),
            "first": address(self._first),
            "weight": address(self._weight),
            "bias": address(self._bias),
            "initial": address(self._initial),
        }


def forward(inputs: ConvInputs) -> Tensor:
    """Channels in vector lanes, sums in float32; see `wavemamba.ops.causal_conv1d.op`."""
    # What stands before the first step is read like the rows, and float32.
    job = _Job(inputs, kernel_rows if inputs.initial_state is None else float_rows)
    y = empty_rows(inputs.x.shape, kernel_dtype(inputs.x.dtype))
    launch(kernels.forward, kernels.FORWARD.fill(job.items, **job.fields(), y=rows(y, may_be_narrow=True)))
    return y.to(inputs.x.dtype)


def backward(inputs: ConvInputs, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients; see `wavemamba.ops.causal_conv1d.op`."""
    job = _Job(inputs)
    dy = float_rows(dy)
    batch, _, channels = inputs.x.shape
    width = inputs.weight.shape[1]
    dx = empty_rows(inputs.x.shape)
    dweight, dbias = empty_rows((batch, width, channels)), empty_rows((batch, channels))
    dinitial = empty_rows((batch, width - 1, channels))
    filled = kernels.BACKWARD.fill(
        job.items,
        **job.fields(),
        dy=rows(dy),
        dx=rows(dx),
        dweight=address(dweight),
        dbias=address(dbias),
        dinitial=address(dinitial),
    )
    launch(kernels.backward, filled)
    return dx, sum_slices(dweight).t(), sum_slices(dbias), dinitial
