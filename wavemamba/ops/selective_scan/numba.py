"""Selective scan on the CPU: the numba kernels as `torch.library` ops with their gradients."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

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
from wavemamba.ops.cpu.simd import LANES
from wavemamba.ops.dispatch.backend import any_requires_grad
from wavemamba.ops.dispatch.differentiable import Differentiable, refuse_second_derivative
from wavemamba.ops.selective_scan.numba_backward import backward
from wavemamba.ops.selective_scan.numba_forward import forward
from wavemamba.ops.selective_scan.numba_job import BACKWARD, BLOCK, CHUNK, FORWARD


def _sizes(u: Tensor, B: Tensor) -> dict[str, int]:
    """How a scan is cut into work items; symbolic sizes go through."""
    batch, length, width = u.shape
    groups, states = B.shape[2:]
    per_group = width // groups
    block = min(BLOCK, -(-per_group // LANES) * LANES)
    return {
        "batches": batch,
        "length": length,
        "width": per_group,
        "groups": groups,
        "states": states,
        "block": block,
        "blocks": -(-per_group // block),
    }


def _items(sizes: dict[str, int]) -> int:
    return sizes["batches"] * sizes["groups"] * sizes["blocks"]


def _kept_shape(sizes: dict[str, int], keep: bool) -> tuple[int, ...]:
    states = sizes["states"] + sizes["states"] % 2  # the kernels take them in pairs
    return (_items(sizes) if keep else 0, -(-sizes["length"] // CHUNK), states, sizes["block"])


class _Inputs:
    """The inputs as the kernels read them: float32, converted or copied only where they must be."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        order: Tensor | None,
    ) -> None:
        self.u, self.delta = float_rows(u), float_rows(delta)
        self.z = None if z is None else float_rows(z)
        self.A, self.B, self.C = contiguous(A), contiguous(B), contiguous(C)
        self.D = None if D is None else contiguous(D)
        self.bias = None if delta_bias is None else contiguous(delta_bias)
        self.order = checked_order(order, u.shape[1])

    def fields(self) -> dict[str, Any]:
        """As fields of a job, valid while this object lives."""
        strided = {name: rows(getattr(self, name)) for name in ("u", "delta", "z")}
        return strided | {name: address(getattr(self, name)) for name in ("A", "B", "C", "D", "bias", "order")}


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
    inputs = _Inputs(u, delta, A, B, C, D, z, delta_bias, order)
    initial = None if initial_state is None else contiguous(initial_state)
    sizes = _sizes(u, B)
    y = empty_rows(u.shape)
    last = torch.empty(u.shape[0], *A.shape, dtype=torch.float32)
    kept = empty_rows(_kept_shape(sizes, keep))
    job = FORWARD.fill(
        _items(sizes),
        **sizes,
        **inputs.fields(),
        softplus=delta_softplus,
        initial=address(initial),
        y=rows(y),
        last=last.data_ptr(),
        checkpoints=kept.data_ptr() if keep else 0,
    )
    launch(forward, job)
    return y.to(u.dtype), last, kept


_scan_op = torch.library.custom_op(
    "wavemamba::selective_scan_numba", _compute_scan, mutates_args=(), device_types="cpu"
)


@_scan_op.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, keep):  # type: ignore[no-untyped-def]  # as above
    last = u.new_empty((u.shape[0], *A.shape), dtype=torch.float32)
    return u.new_empty(u.shape), last, last.new_empty(_kept_shape(_sizes(u, B), keep))


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
    inputs = _Inputs(u, delta, A, B, C, D, z, delta_bias, order)
    dy = torch.zeros(u.shape) if dy is None else float_rows(dy)
    dlast = None if dlast is None else contiguous(dlast)
    sizes = _sizes(u, B)
    batch, _, width = u.shape
    new = functools.partial(torch.empty, dtype=torch.float32)
    du, ddelta = empty_rows(u.shape), empty_rows(u.shape)
    dz = None if z is None else empty_rows(u.shape)
    dA, dinitial = new(batch, *A.shape), new(batch, *A.shape)
    dB, dC = new(sizes["blocks"], *B.shape), new(sizes["blocks"], *B.shape)
    dD, dbias = new(batch, width), new(batch, width)
    job = BACKWARD.fill(
        _items(sizes),
        **sizes,
        **inputs.fields(),
        softplus=delta_softplus,
        checkpoints=kept.data_ptr(),
        dy=rows(dy),
        dlast=address(dlast),
        du=rows(du),
        ddelta=rows(ddelta),
        dz=rows(dz),
        dA=dA.data_ptr(),
        dB=dB.data_ptr(),
        dC=dC.data_ptr(),
        dD=dD.data_ptr(),
        dbias=dbias.data_ptr(),
        dinitial=dinitial.data_ptr(),
    )
    launch(backward, job)
    gradients = (du, ddelta, *map(sum_slices, (dA, dB, dC, dD)), dz, sum_slices(dbias), dinitial)
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return tuple(  # type: ignore[return-value]  # mypy does not count the nine
        new(0) if tensor is None or gradient is None else gradient.to(tensor.dtype)
        for tensor, gradient in zip(given, gradients, strict=True)
    )


_scan_backward_op = torch.library.custom_op(
    "wavemamba::selective_scan_numba_backward", _compute_scan_backward, mutates_args=(), device_types="cpu"
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
    """Channels in vector lanes, states in float32; see `wavemamba.ops.selective_scan` for the equation and shapes."""
    keep = any_requires_grad(u, delta, A, B, C, D, z, delta_bias, initial_state)
    y, last_state, _ = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, keep)
    return y, last_state
