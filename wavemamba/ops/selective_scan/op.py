"""The selective scan as a `torch.library` op, declared once for the kernels of every device.

A backend with kernels is a module with three functions:

    new_states(inputs, keep, new) -> (last_state, kept), uninitialised, allocated by new(shape) in float32
    forward(inputs, keep) -> (y, last_state, kept)
    backward(inputs, dy, dlast, kept) -> the gradients of DIFFERENTIABLE

`kept` holds the states that the backward pass starts from, in a row, so that a graph for any length does not ask
whether there is one chunk or several; it is empty without `keep`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wavemamba.ops.dispatch.backend import any_requires_grad
from wavemamba.ops.dispatch.kernel_op import KernelOp, fake_gradients_like, gradients_like, kernels, schema_of


class ScanInputs(NamedTuple):
    """What every backend takes; `B` and `C` are grouped, (B, L, G, N). See `selective_scan` for shapes."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    initial_state: Tensor | None
    order: Tensor | None
    seq_idx: Tensor | None = None

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """The inputs that have a gradient, by the names in `DIFFERENTIABLE`."""
        return tuple(getattr(self, name) for name in DIFFERENTIABLE)


DIFFERENTIABLE = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
_HOSTS = functools.partial(kernels, "selective_scan")


def _compute(*values: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, keep, backend = values
    y, last_state, kept = _HOSTS(backend).forward(ScanInputs(*fields), keep)
    return y, last_state, kept


def _fake(*values: Any) -> tuple[Tensor, ...]:
    *fields, keep, backend = values
    inputs = ScanInputs(*fields)
    new = functools.partial(inputs.u.new_empty, dtype=torch.float32)
    return inputs.u.new_empty(inputs.u.shape), *_HOSTS(backend).new_states(inputs, keep, new)


_PER_STATE, _PER_STATE_BACKWARD = 7, 19
"""Operations a channel, step and state: d * A, exp, * h, * B, +, * C, +; backward the first five of them again, the
adjoint state (3), and product and sum for each of dB, dC, dx, d(delta) and dA beside the factor that two share."""


def _flops(*values: Any, **_: Any) -> int:
    """Every product, sum, exponential, softplus and SiLU of the equation as one."""
    *fields, _keep, _backend = values
    return _count(ScanInputs(*fields), _PER_STATE, 1)


def _flops_backward(*values: Any, **_: Any) -> int:
    """The gradients, with the states of a chunk computed again."""
    return _count(ScanInputs(*values[3:-1]), _PER_STATE_BACKWARD, 3)


def _count(shapes: Any, per_state: int, passes: int) -> int:
    per_channel = 1 + sum((shapes.delta_bias is not None, shapes.delta_softplus))
    per_channel += 2 * sum((shapes.D is not None, shapes.z is not None))
    return int(math.prod(shapes.u) * (per_state * shapes.A[1] + passes * per_channel))


def _compute_backward(*values: Any) -> tuple[Tensor, ...]:
    dy, dlast, kept, *fields, backend = values
    inputs = ScanInputs(*fields)
    if kept.numel() == 0:  # the forward pass did not know that a gradient would be asked for
        kept = scan.op(*inputs, True, backend)[2]
    return gradients_like(inputs.differentiable, _HOSTS(backend).backward(inputs, dy, dlast, kept))


def _fake_backward(*values: Any) -> tuple[Tensor, ...]:
    return fake_gradients_like(ScanInputs(*values[3:-1]).differentiable)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *fields, _, ctx.backend = inputs
    given = ScanInputs(*fields)
    ctx.save_for_backward(*given.differentiable, given.order, given.seq_idx, output[2])
    ctx.plain = {"delta_softplus": given.delta_softplus}
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *tensors, order, seq_idx, kept = ctx.saved_tensors
    given = dict(zip(DIFFERENTIABLE, tensors, strict=True))
    inputs = ScanInputs(**given, **ctx.plain, order=order, seq_idx=seq_idx)
    gradients = scan_backward(dy, dlast, kept, *inputs, ctx.backend)
    found = {name: g for name, g, t in zip(DIFFERENTIABLE, gradients, tensors, strict=True) if t is not None}
    return *(found.get(name) for name in inputs._fields), None, None


scan = KernelOp(
    "selective_scan",
    schema_of(ScanInputs, "bool keep", "str backend", returns=3),
    _compute,
    _fake,
    _flops,
    _save,
    _gradients,
)
scan_backward = KernelOp(
    "selective_scan_backward",
    "(Tensor? dy, Tensor? dlast, Tensor kept, " + schema_of(ScanInputs, "str backend", returns=9)[1:],
    _compute_backward,
    _fake_backward,
    _flops_backward,
)


def run(backend: str, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Scan with the kernels of a backend; states, exponentials and sums in float32."""
    keep = any_requires_grad(*inputs.differentiable)
    y, last_state, _ = scan(*inputs, keep, backend)
    return y, last_state
