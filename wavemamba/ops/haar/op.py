"""The Haar packet map as a `torch.library` op, declared once for the kernels of every device.

A backend with kernels is a module with one function, `forward(inputs) -> y`: the gradient is the map the other way.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from wavemamba.ops.dispatch.kernel_op import KernelOp, kernels, schema_of


class HaarInputs(NamedTuple):
    """What every backend takes; see `wavemamba.ops.haar` for the map."""

    x: Tensor
    levels: int
    layout: str
    scale: float
    inverse: bool


def _compute(*values: Any) -> Tensor:
    *fields, backend = values
    y: Tensor = kernels("haar", backend).forward(HaarInputs(*fields))
    return y


def _fake(*values: Any) -> Tensor:
    x = values[0]
    fake: Tensor = x.new_empty(x.shape)
    return fake


def _flops(*values: Any, **_: Any) -> int:
    """The scaling, and two sums a value and level."""
    return math.prod(values[0]) * (2 * HaarInputs(*values[:-1]).levels + 1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *ctx.linear_map, ctx.inverse, ctx.backend = inputs


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return haar_map(dy, *ctx.linear_map, not ctx.inverse, ctx.backend), None, None, None, None, None


haar_map = KernelOp("haar", schema_of(HaarInputs, "str backend"), _compute, _fake, _flops, _save, _gradients)


def run(backend: str, inputs: HaarInputs) -> Tensor:
    """Transform and layout in one pass by the kernels of a backend, in float32."""
    y: Tensor = haar_map(*inputs, backend)
    return y
