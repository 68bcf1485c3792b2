"""Selective scan on a GPU: the Triton kernels as `torch.library` ops with their gradients.

The ops are opaque to the compiler (`custom_op`, not `triton_op`): what they launch depends on the GPU (how many
segments), some launches depend on others, and Triton's interpreter, which has no kernel that the compiler could take
over, must run the same code for the tests. What the compiler loses is nothing: the kernels have no neighbours to fuse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wavemamba.ops.dispatch.backend import any_requires_grad
from wavemamba.ops.dispatch.differentiable import Differentiable, refuse_second_derivative
from wavemamba.ops.gpu.runtime import dense_rows, launch, rows_of
from wavemamba.ops.selective_scan import triton_backward, triton_kernels, triton_plan
from wavemamba.ops.selective_scan.triton_plan import Inputs, Sizes


def _compute_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    order: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, the last state, and, with `keep`, the states that the backward pass starts from."""
    inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order)
    sizes = inputs.sizes
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    last = u.new_empty(sizes.batch, sizes.states, sizes.width, dtype=torch.float32)
    kept = last.new_empty(sizes.kept(keep))
    launch(
        triton_kernels.forward,
        inputs.programs,
        u,
        inputs.u,
        inputs.delta,
        inputs.A,
        inputs.B,
        inputs.C,
        inputs.D,
        inputs.z,
        inputs.bias,
        inputs.order,
        inputs.entering(inputs.u, inputs.B, initial_state, backward=False),
        y,
        last,
        kept if keep else None,
        *inputs.grid(),
        *rows_of(inputs.u, inputs.delta, inputs.z),
        0,
        **inputs.constants(STEPS=triton_plan.FORWARD_STEPS, CHUNK=triton_plan.CHUNK, EVEN=sizes.even),
    )
    return y, last.transpose(1, 2), kept


_scan_op = torch.library.custom_op("wavemamba::selective_scan_triton", _compute_scan, mutates_args=())


@_scan_op.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, keep):  # type: ignore[no-untyped-def]  # as above
    last = u.new_empty((u.shape[0], *reversed(A.shape)), dtype=torch.float32).transpose(1, 2)
    return u.new_empty(u.shape), last, last.new_empty(Sizes.of(u, B).kept(keep))


def _compute_scan_backward(
    dy: Tensor | None,
    dlast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    order: Tensor | None,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state; empty where there is no such input."""
    if kept.numel() == 0:  # the forward pass did not know that a gradient would be asked for
        kept = _scan_op(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, True)[2]
    inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order)
    sizes, segments = inputs.sizes, inputs.segments
    dy = u.new_zeros(u.shape) if dy is None else dense_rows(dy)

    def new(*shape: int) -> Tensor:
        return kept.new_empty(shape)

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    du, ddelta, dz = like(u), like(delta), None if z is None else like(z)
    dA = new(sizes.batch * segments.parts, sizes.states, sizes.width)
    dB, dC = new(sizes.blocks, *B.shape), new(sizes.blocks, *C.shape)
    dD = None if D is None else new(sizes.batch * segments.parts, sizes.width)
    dbias = None if delta_bias is None else new(sizes.batch * segments.parts, sizes.width)
    dinitial = None if initial_state is None else new(sizes.batch, sizes.states, sizes.width)
    launch(
        triton_backward.backward,
        inputs.programs,
        u,
        dy,
        inputs.entering(dy, inputs.C, dlast, backward=True),
        inputs.u,
        inputs.delta,
        inputs.A,
        inputs.B,
        inputs.C,
        inputs.D,
        inputs.z,
        inputs.bias,
        inputs.order,
        kept,
        new(inputs.programs, triton_plan.CHUNK // triton_plan.BACKWARD_STEPS, sizes.states, sizes.block),
        du,
        ddelta,
        dA,
        dB,
        dC,
        dD,
        dz,
        dbias,
        dinitial,
        *inputs.grid(),
        *rows_of(dy, inputs.u, inputs.delta, inputs.z),
        **inputs.constants(STEPS=triton_plan.BACKWARD_STEPS, CHUNK=triton_plan.CHUNK, EVEN=sizes.even),
    )
    gradients = (
        du,
        ddelta,
        dA.sum(0).T,
        dB.sum(0),
        dC.sum(0),
        None if dD is None else dD.sum(0),
        dz,
        None if dbias is None else dbias.sum(0),
        None if dinitial is None else dinitial.transpose(1, 2),
    )
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return tuple(  # type: ignore[return-value]  # mypy does not count the nine
        new(0) if tensor is None or gradient is None else gradient.to(tensor.dtype).contiguous()
        for tensor, gradient in zip(given, gradients, strict=True)
    )


_scan_backward_op = torch.library.custom_op(
    "wavemamba::selective_scan_triton_backward", _compute_scan_backward, mutates_args=()
)


@_scan_backward_op.register_fake
def _(dy, dlast, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, kept):  # type: ignore[no-untyped-def]  # as above
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return tuple(u.new_empty(0, dtype=torch.float32) if t is None else t.new_empty(t.shape) for t in given)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, delta_softplus, initial_state, order, _ = inputs
    ctx.save_for_backward(*tensors, initial_state, order, output[2])
    ctx.delta_softplus = delta_softplus
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *tensors, initial_state, order, kept = ctx.saved_tensors
    gradients = _scan_backward(dy, dlast, *tensors, ctx.delta_softplus, initial_state, order, kept)
    given = (*tensors, initial_state)
    *asked, dinitial = (None if t is None else gradient for t, gradient in zip(given, gradients, strict=True))
    return (*asked, None, dinitial, None, None)


_scan = Differentiable("selective_scan", _compute_scan, _scan_op, _setup_context, _gradients)
_scan_backward = refuse_second_derivative("selective_scan", _compute_scan_backward, _scan_backward_op)


def run(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    order: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """States in registers, float32; see `wavemamba.ops.selective_scan` for the equation and shapes."""
    keep = any_requires_grad(u, delta, A, B, C, D, z, delta_bias, initial_state)
    y, last_state, _ = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, keep)
    return y, last_state
