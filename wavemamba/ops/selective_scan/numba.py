"""Selective scan on the CPU: what the numba kernels are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from wavemamba.ops.cpu.runtime import launch, sum_slices
from wavemamba.ops.cpu.simd import LANES
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
from wavemamba.ops.packed import sequence_starts
from wavemamba.ops.selective_scan.numba_backward import backward as backward_kernel
from wavemamba.ops.selective_scan.numba_forward import forward as forward_kernel
from wavemamba.ops.selective_scan.numba_job import BACKWARD, BLOCK, CHUNK, FORWARD, ITEMS
from wavemamba.ops.selective_scan.op import ScanInputs


def _sizes(u: Tensor, B: Tensor) -> dict[str, int]:
    """How a scan is cut into work items."""
    batch, length, width = u.shape
    groups, states = B.shape[2:]
    per_group = width // groups
    vectors = -(-per_group // LANES)
    in_block = min(BLOCK // LANES, vectors)
    while in_block > 1 and batch * groups * -(-vectors // in_block) < ITEMS:
        in_block -= 1
    block = in_block * LANES
    return {
        "batches": batch,
        "length": length,
        "width": per_group,
        "groups": groups,
        "states": states,
        "block": block,
        "blocks": -(-per_group // block),
    }


def new_states(inputs: ScanInputs, keep: bool, new: Callable[[tuple[int, ...]], Tensor]) -> tuple[Tensor, Tensor]:
    """The last state, channels dense, and the states at the start of every chunk; uninitialised.

    Sizes may be symbolic.
    """
    batch, length, width = inputs.u.shape
    groups, states = inputs.B.shape[2:]
    padded = states + states % 2  # the kernels take them in pairs
    vectors = -(-(width // groups) // LANES)
    kept = batch * groups * -(-length // CHUNK) * vectors * padded * LANES if keep else 0
    return new((batch, states, width)).transpose(1, 2), new((kept,))


def _channels_last(tensor: Tensor) -> Tensor:
    """(..., E, N) as dense (..., N, E), the way in which kernels read states and their rates."""
    return contiguous(tensor.transpose(-2, -1))


class _Job:
    """The inputs as the kernels read them: float32, converted or copied only where they must be.

    Args:
        inputs: of the op.
        read: makes the rows that a kernel reads; those of the forward pass may be bfloat16.
    """

    def __init__(self, inputs: ScanInputs, read: Callable[[Tensor], Tensor] = float_rows) -> None:
        self.sizes = _sizes(inputs.u, inputs.B)
        self.items = self.sizes["batches"] * self.sizes["groups"] * self.sizes["blocks"]
        self._strided = {name: _optional(read, getattr(inputs, name)) for name in ("u", "delta", "z")}
        self._dense = {name: _optional(contiguous, getattr(inputs, name)) for name in ("B", "C", "D")}
        self._dense["A"] = _channels_last(inputs.A)
        self._dense["bias"] = _optional(contiguous, inputs.delta_bias)
        self._dense["order"] = checked_order(inputs.order, inputs.u.shape[1])
        self._dense["starts"] = _optional(
            lambda seq_idx: sequence_starts(seq_idx, inputs.order).long().contiguous(), inputs.seq_idx
        )
        self._softplus = inputs.delta_softplus

    def fields(self) -> dict[str, Any]:
        """As fields of a job, valid while this object lives."""
        strided = {name: rows(tensor, may_be_narrow=True) for name, tensor in self._strided.items()}
        dense = {name: address(tensor) for name, tensor in self._dense.items()}
        return {**self.sizes, **strided, **dense, "softplus": self._softplus}


def _optional(convert: Callable[[Tensor], Tensor], tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else convert(tensor)


def forward(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Channels in vector lanes, states in float32; see `wavemamba.ops.selective_scan.op`."""
    job = _Job(inputs, kernel_rows)
    initial = _optional(_channels_last, inputs.initial_state)
    y = empty_rows(inputs.u.shape, kernel_dtype(inputs.u.dtype))
    last, kept = new_states(inputs, keep, empty_rows)
    filled = FORWARD.fill(
        job.items,
        **job.fields(),
        initial=address(initial),
        y=rows(y, may_be_narrow=True),
        last=address(last.transpose(1, 2)),
        checkpoints=address(kept) if keep else 0,
    )
    launch(forward_kernel, filled)
    return y.to(inputs.u.dtype), last, kept


def backward(inputs: ScanInputs, dy: Tensor | None, dlast: Tensor | None, kept: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients; see `wavemamba.ops.selective_scan.op`."""
    u, A, B = inputs.u, inputs.A, inputs.B
    job = _Job(inputs)
    dy = float_rows(u.new_zeros(u.shape) if dy is None else dy)
    dlast = _optional(_channels_last, dlast)
    batch, _, width = u.shape
    turned = (batch, A.shape[1], width)
    dinitial = None if inputs.initial_state is None else empty_rows(turned)
    sums = {"dA": empty_rows(turned), "dD": empty_rows((batch, width)), "dbias": empty_rows((batch, width))}
    sums |= {name: empty_rows((job.sizes["blocks"], *B.shape)) for name in ("dB", "dC")}
    du, ddelta = empty_rows(u.shape), empty_rows(u.shape)
    dz = None if inputs.z is None else empty_rows(u.shape)
    filled = BACKWARD.fill(
        job.items,
        **job.fields(),
        checkpoints=address(kept),
        dy=rows(dy),
        dlast=address(dlast),
        du=rows(du),
        ddelta=rows(ddelta),
        dz=rows(dz),
        dinitial=address(dinitial),
        **{name: address(tensor) for name, tensor in sums.items()},
    )
    launch(backward_kernel, filled)
    dA, dB, dC, dD, dbias = (sum_slices(sums[name]) for name in ("dA", "dB", "dC", "dD", "dbias"))
    dinitial = None if dinitial is None else dinitial.transpose(1, 2)
    return du, ddelta, dA.t(), dB, dC, dD, dz, dbias, dinitial
