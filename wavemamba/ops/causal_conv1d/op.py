"""The causal convolution as a `torch.library` op, declared once for the kernels of every device.

A backend with kernels is a module with two functions:

    forward(inputs) -> y
    backward(inputs, dy) -> the gradients of DIFFERENTIABLE
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from torch import Tensor

from wavemamba.ops.dispatch.kernel_op import KernelOp, fake_gradients_like, gradients_like, kernels, schema_of


class ConvInputs(NamedTuple):
    """What every backend takes. See `causal_conv1d` for shapes."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    silu: bool
    initial_state: Tensor | None
    order: Tensor | None
    seq_idx: Tensor | None = None

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """The inputs that have a gradient, by the names in `DIFFERENTIABLE`."""
        return tuple(getattr(self, name) for name in DIFFERENTIABLE)


DIFFERENTIABLE = ("x", "weight", "bias", "initial_state")
_HOSTS = functools.partial(kernels, "causal_conv1d")


def _compute(*values: Any) -> Tensor:
    *fields, backend = values
    y: Tensor = _HOSTS(backend).forward(ConvInputs(*fields))
    return y


def _fake(*values: Any) -> Tensor:
    x = values[0]
    fake: Tensor = x.new_empty(x.shape)
    return fake


def _flops(*values: Any, **_: Any) -> int:
    """A product and a sum a tap, as PyTorch counts its own convolutions."""
    x, weight, *_others = values  # their shapes
    return int(2 * math.prod(x) * weight[1])


def _compute_backward(*values: Any) -> tuple[Tensor, ...]:
    dy, *fields, backend = values
    inputs = ConvInputs(*fields)
    return gradients_like(inputs.differentiable, _HOSTS(backend).backward(inputs, dy))


def _fake_backward(*values: Any) -> tuple[Tensor, ...]:
    return fake_gradients_like(ConvInputs(*values[1:-1]).differentiable)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *fields, ctx.backend = inputs
    given = ConvInputs(*fields)
    ctx.save_for_backward(*given.differentiable, given.order, given.seq_idx)
    ctx.plain = {"silu": given.silu}


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, order, seq_idx = ctx.saved_tensors
    given = dict(zip(DIFFERENTIABLE, tensors, strict=True))
    inputs = ConvInputs(**given, **ctx.plain, order=order, seq_idx=seq_idx)
    gradients = conv_backward(dy, *inputs, ctx.backend)
    found = {name: g for name, g, t in zip(DIFFERENTIABLE, gradients, tensors, strict=True) if t is not None}
    return *(found.get(name) for name in inputs._fields), None


conv = KernelOp("causal_conv1d", schema_of(ConvInputs, "str backend"), _compute, _fake, _flops, _save, _gradients)
conv_backward = KernelOp(
    "causal_conv1d_backward",
    "(Tensor dy, " + schema_of(ConvInputs, "str backend", returns=4)[1:],
    _compute_backward,
    _fake_backward,
    lambda dy, *values, **_: 2 * _flops(*values),  # the gradients of x and of the weight
)


def run(backend: str, inputs: ConvInputs) -> Tensor:
    """Convolve with the kernels of a backend; sums in float32."""
    y: Tensor = conv(*inputs, backend)
    return y
