"""Selective scan on the CPU: the numba kernels as `torch.library` ops with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wavemamba.ops.backend import any_requires_grad
from wavemamba.ops.numba_runtime import address, contiguous, float_rows, parallel, refuse_second_derivative, rows
from wavemamba.ops.numba_simd import LANES
from wavemamba.ops.selective_scan import numba_kernels as kernels
from wavemamba.ops.selective_scan.numba_kernels import BLOCK, CHUNK, Sizes


def _sizes(u: Tensor, B: Tensor, delta_softplus: bool, order: Tensor | None) -> Sizes:
    batch, length, width = u.shape
    groups, states = B.shape[2:]
    per_group = width // groups
    block = min(BLOCK, -(-per_group // LANES) * LANES)
    return Sizes(
        batches=batch,
        length=length,
        width=per_group,
        groups=groups,
        states=states,
        block=block,
        blocks=-(-per_group // block),
        chunks=-(-length // CHUNK),
        order=address(order),
        softplus=int(delta_softplus),
    )


@torch.library.custom_op("wavemamba::selective_scan_numba", mutates_args=(), device_types="cpu")
def _scan(
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
    dtype = u.dtype
    u, delta = float_rows(u), float_rows(delta)
    z = None if z is None else float_rows(z)
    A, B, C = contiguous(A), contiguous(B), contiguous(C)
    D, delta_bias, initial_state = contiguous(D), contiguous(delta_bias), contiguous(initial_state)
    order = None if order is None else order.contiguous()
    sizes = _sizes(u, B, delta_softplus, order)
    y = u.new_empty(u.shape)
    last = u.new_empty(u.shape[0], u.shape[2], A.shape[1])
    kept = u.new_empty(_kept_shape(sizes, keep))
    parallel(
        kernels.forward,
        sizes.batches * sizes.groups * sizes.blocks,
        sizes,
        rows(u),
        rows(delta),
        rows(z),
        address(A),
        address(B),
        address(C),
        address(D),
        address(delta_bias),
        address(initial_state),
        rows(y),
        address(last),
        address(kept) if keep else 0,
    )
    return y.to(dtype), last, kept


def _kept_shape(sizes: Sizes, keep: bool) -> tuple[int, ...]:
    items = sizes.batches * sizes.groups * sizes.blocks if keep else 0
    return (items, sizes.chunks, sizes.states, sizes.block)


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, keep):  # type: ignore[no-untyped-def]  # as above
    batch, length, width = u.shape
    groups, states = B.shape[2:]
    per_group = width // groups
    block = min(BLOCK, -(-per_group // LANES) * LANES)
    items = batch * groups * -(-per_group // block) if keep else 0
    y = u.new_empty(u.shape)
    last = u.new_empty((batch, width, states), dtype=torch.float32)
    return y, last, last.new_empty((items, -(-length // CHUNK), states, block))


@torch.library.custom_op("wavemamba::selective_scan_numba_backward", mutates_args=(), device_types="cpu")
def _scan_backward(
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
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state; empty where there is no such input."""
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    if kept.numel() == 0:  # the forward pass did not know that a gradient would be asked for
        kept = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, True)[2]
    u, delta = float_rows(u), float_rows(delta)
    dy = torch.zeros_like(u) if dy is None else float_rows(dy)
    z = None if z is None else float_rows(z)
    A, B, C = contiguous(A), contiguous(B), contiguous(C)
    D, delta_bias, dlast = contiguous(D), contiguous(delta_bias), contiguous(dlast)
    order = None if order is None else order.contiguous()
    sizes = _sizes(u, B, delta_softplus, order)
    batch, _, width = u.shape
    du, ddelta = u.new_empty(u.shape), u.new_empty(u.shape)
    dz = None if z is None else u.new_empty(u.shape)
    dA, dinitial = u.new_empty(batch, *A.shape), u.new_empty(batch, *A.shape)
    dB, dC = u.new_empty(sizes.blocks, *B.shape), u.new_empty(sizes.blocks, *B.shape)
    dD, dbias = u.new_empty(batch, width), u.new_empty(batch, width)
    parallel(
        kernels.backward,
        sizes.batches * sizes.groups * sizes.blocks,
        sizes,
        rows(u),
        rows(delta),
        rows(z),
        address(A),
        address(B),
        address(C),
        address(D),
        address(delta_bias),
        address(kept),
        rows(dy),
        address(dlast),
        rows(du),
        rows(ddelta),
        rows(dz),
        address(dA),
        address(dB),
        address(dC),
        address(dD),
        address(dbias),
        address(dinitial),
    )
    gradients = (du, ddelta, dA.sum(0), dB.sum(0), dC.sum(0), dD.sum(0), dz, dbias.sum(0), dinitial)
    return [
        u.new_empty(0) if given is None or gradient is None else gradient.to(given.dtype)
        for given, gradient in zip(inputs, gradients, strict=True)
    ]


@_scan_backward.register_fake
def _(dy, dlast, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, kept):  # type: ignore[no-untyped-def]  # as above
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return [u.new_empty(0, dtype=torch.float32) if x is None else x.new_empty(x.shape) for x in inputs]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, delta, A, B, C, D, z, delta_bias, softplus, initial_state, order, _ = inputs
    ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, initial_state, order, output[2])
    ctx.softplus = softplus
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None, dkept: Tensor | None) -> tuple[Tensor | None, ...]:
    u, delta, A, B, C, D, z, delta_bias, initial_state, order, kept = ctx.saved_tensors
    gradients = _scan_backward(dy, dlast, u, delta, A, B, C, D, z, delta_bias, ctx.softplus, initial_state, order, kept)
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = (
        None if given is None else gradient for given, gradient in zip(inputs, gradients, strict=True)
    )
    return du, ddelta, dA, dB, dC, dD, dz, dbias, None, dinitial, None, None


_scan.register_autograd(_gradients, setup_context=_setup_context)
_scan_backward.register_autograd(refuse_second_derivative("selective_scan"))


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
