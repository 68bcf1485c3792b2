"""Selective scan on a GPU: what the Triton kernels are given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wavemamba.ops.gpu.runtime import dense_rows, launch, rows_of
from wavemamba.ops.selective_scan import triton_backward, triton_kernels, triton_plan
from wavemamba.ops.selective_scan.op import ScanInputs
from wavemamba.ops.selective_scan.triton_plan import Plan, Sizes


def new_states(inputs: ScanInputs, keep: bool, new: Callable[[tuple[int, ...]], Tensor]) -> tuple[Tensor, Tensor]:
    """The last state, channels dense, and the states at the start of every chunk, one tile a program; uninitialised."""
    sizes = Sizes.of(inputs.u, inputs.B)
    return new((sizes.batch, sizes.states, sizes.width)).transpose(1, 2), new((sizes.kept if keep else 0,))


def forward(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """States in registers, float32; see `wavemamba.ops.selective_scan.op`."""
    u, plan = inputs.u, Plan(inputs)
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    last, kept = new_states(inputs, keep, plan.new)
    launch(
        triton_kernels.forward,
        plan.programs,
        u,
        *plan.inputs(),
        plan.entering(plan.u, plan.B, inputs.initial_state, backward=False),
        y,
        last.transpose(1, 2),
        kept if keep else None,
        *plan.grid(),
        *rows_of(plan.u, plan.delta, plan.z),
        0,
        **plan.constants(STEPS=triton_plan.FORWARD_STEPS, CHUNK=triton_plan.CHUNK, EVEN=plan.sizes.even),
    )
    return y, last, kept


def backward(inputs: ScanInputs, dy: Tensor | None, dlast: Tensor | None, kept: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients; see `wavemamba.ops.selective_scan.op`."""
    u, delta, z, plan = inputs.u, inputs.delta, inputs.z, Plan(inputs)
    sizes, parts = plan.sizes, plan.sizes.batch * plan.segments.parts
    dy = u.new_zeros(u.shape) if dy is None else dense_rows(dy)

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    du, ddelta, dz = like(u), like(delta), None if z is None else like(z)
    dA = plan.new((parts, sizes.states, sizes.width))
    dB, dC = plan.new((sizes.blocks, *inputs.B.shape)), plan.new((sizes.blocks, *inputs.B.shape))
    dD = None if inputs.D is None else plan.new((parts, sizes.width))
    dbias = None if inputs.delta_bias is None else plan.new((parts, sizes.width))
    dinitial = None if inputs.initial_state is None else plan.new((sizes.batch, sizes.states, sizes.width))
    launch(
        triton_backward.backward,
        plan.programs,
        u,
        dy,
        plan.entering(dy, plan.C, dlast, backward=True),
        *plan.inputs(),
        kept,
        plan.new((plan.programs, triton_plan.CHUNK // triton_plan.BACKWARD_STEPS, sizes.states, sizes.block)),
        du,
        ddelta,
        dA,
        dB,
        dC,
        dD,
        dz,
        dbias,
        dinitial,
        *plan.grid(),
        *rows_of(dy, plan.u, plan.delta, plan.z),
        **plan.constants(STEPS=triton_plan.BACKWARD_STEPS, CHUNK=triton_plan.CHUNK, EVEN=sizes.even),
    )
    return (
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
