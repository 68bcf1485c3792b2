"""Selective scan on a GPU: the Triton kernels as `torch.library` ops with their gradients.

The ops are opaque to the compiler (`custom_op`, not `triton_op`): what they launch depends on the GPU (how many
segments), some launches depend on others, and Triton's interpreter, which has no kernel that the compiler could take
over, must run the same code for the tests. What the compiler loses is nothing: the kernels have no neighbours to fuse.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from wavemamba.ops.backend import any_requires_grad
from wavemamba.ops.selective_scan import triton_backward, triton_kernels, triton_segments
from wavemamba.ops.triton_runtime import (
    dense_rows,
    expect_indexable,
    launch,
    multiprocessors,
    refuse_second_derivative,
    rows_of,
)

CHUNK = 32
"""Steps between the states that the forward pass keeps; a multiple of both numbers of steps below."""
FORWARD_STEPS = 4
"""Steps whose loads are issued together. 8 makes the loop larger than the instruction cache likes."""
BACKWARD_STEPS = 4
"""Steps whose states and decays the backward pass holds in registers; with 4 they no longer fit for 16 states."""
TILE = 512
"""States that a program, one warp, holds: 16 a thread."""
WARPS_PER_MULTIPROCESSOR = 8
"""Programs which keep a multiprocessor busy: two for each of its four schedulers, each with 16 independent states."""
FEWEST_SEGMENTS = 3
"""Segments cost a second pass over the sequence; with two of them nothing is won."""
SHORTEST_SEGMENT = 2 * CHUNK


class _Sizes(NamedTuple):
    batch: int
    length: int
    groups: int
    per_group: int
    states: int

    @classmethod
    def of(cls, u: Tensor, B: Tensor) -> _Sizes:
        batch, length, width = u.shape
        groups, states = B.shape[2:]
        return cls(batch, length, groups, width // groups, states)

    @property
    def width(self) -> int:
        return self.groups * self.per_group

    @property
    def padded(self) -> int:
        return int(triton.next_power_of_2(self.states))

    @property
    def block(self) -> int:
        """Channels of a program, at most a warp's threads."""
        return max(1, min(32, TILE // self.padded))

    @property
    def blocks(self) -> int:
        """Programs for the channels of a group."""
        return -(-self.per_group // self.block)

    @property
    def even(self) -> bool:
        """Whether every program has BLOCK channels and no state is padding."""
        return self.per_group % self.block == 0 and self.padded == self.states

    @property
    def chunks(self) -> int:
        return -(-self.length // CHUNK)

    def kept(self, keep: bool) -> tuple[int, ...]:
        """Shape of the states at the start of every chunk, one tile a program."""
        return (self.batch if keep else 0, self.chunks, self.groups * self.blocks, self.states, self.block)


class _Segments(NamedTuple):
    """How many parts of the sequence run side by side, and their steps, a multiple of CHUNK."""

    count: int
    length: int

    @classmethod
    def of(cls, sizes: _Sizes, device_of: Tensor) -> _Segments:
        whole = cls(1, sizes.chunks * CHUNK)
        programs = sizes.batch * sizes.groups * sizes.blocks
        wanted = WARPS_PER_MULTIPROCESSOR * multiprocessors(device_of) // programs
        wanted = min(wanted, sizes.length // SHORTEST_SEGMENT)
        if wanted < FEWEST_SEGMENTS:
            return whole
        length = -(-sizes.chunks // wanted) * CHUNK
        return cls(-(-sizes.length // length), length)


class _Inputs:
    """The inputs as the kernels read them: any strides and dtypes, but dense channels; B and C in float32."""

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
        delta_softplus: bool,
        order: Tensor | None,
    ) -> None:
        expect_indexable(u.shape[1])
        self.sizes = _Sizes.of(u, B)
        self.segments = _Segments.of(self.sizes, u)
        self.u, self.delta, self.A = dense_rows(u), dense_rows(delta), _states_first(A)
        self.z = None if z is None else dense_rows(z)
        self.B, self.C = B.float().contiguous(), C.float().contiguous()
        self.D = None if D is None else D.contiguous()
        self.bias = None if delta_bias is None else delta_bias.contiguous()
        self.order = None if order is None else order.contiguous()
        self.softplus = delta_softplus

    @property
    def programs(self) -> int:
        return self.sizes.batch * self.segments.count * self.sizes.groups * self.sizes.blocks

    def grid(self) -> tuple[int, ...]:
        """Sizes that every kernel takes."""
        sizes = self.sizes
        return (sizes.length, *self.segments, sizes.blocks, sizes.groups, sizes.per_group)

    @property
    def wide(self) -> bool:
        """Whether an offset inside one batch element needs 64 bits."""
        steps = [t.stride(1) for t in (self.u, self.delta, self.z) if t is not None]
        return self.sizes.length * max(*steps, self.sizes.width, self.sizes.groups * self.sizes.states) >= 2**31

    def constants(self, **more: Any) -> dict[str, Any]:
        return {
            "STATES": self.sizes.states,
            "PADDED": self.sizes.padded,
            "BLOCK": self.sizes.block,
            "SOFTPLUS": self.softplus,
            "WIDE": self.wide,
            "warps": 1,
            **more,
        }

    def entering(self, x: Tensor, BC: Tensor, first: Tensor | None, backward: bool) -> Tensor | None:
        """The state that enters every segment, (B, segments, N, E).

        Args:
            x: (B, L, E), what drives the state: the input, or backward the gradient of the output.
            BC: (B, L, G, N), how it enters the state: B, or backward C.
            first: (B, E, N), the state that enters the sequence; zero where absent.
            backward: run from the end of the sequence to its start.
        """
        first = None if first is None else _states_first(first)
        if self.segments.count == 1:
            return first
        batch, count, states, width = self.sizes.batch, self.segments.count, self.sizes.states, self.sizes.width
        reached = x.new_empty(batch, count, states, width, dtype=torch.float32)
        total = x.new_empty(batch, count, width, dtype=torch.float32)
        launch(
            triton_segments.summarize,
            self.programs,
            x,
            x,
            self.delta,
            self.z if backward else None,
            self.A,
            BC,
            self.bias,
            self.order,
            reached,
            total,
            *self.grid(),
            *rows_of(x, self.delta, self.z),
            0,
            **self.constants(STEPS=FORWARD_STEPS, BACKWARD=backward),
        )
        launch(
            triton_segments.combine,
            batch * -(-states * width // 128),
            x,
            self.A,
            first,
            reached,
            total,
            count,
            width,
            STATES=states,
            BLOCK=128,
            BACKWARD=backward,
        )
        return reached


def _states_first(tensor: Tensor) -> Tensor:
    """(..., E, N) to contiguous (..., N, E): neighbouring threads have neighbouring channels."""
    return tensor.float().transpose(-2, -1).contiguous()


@torch.library.custom_op("wavemamba::selective_scan_triton", mutates_args=())
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
    inputs = _Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order)
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
        **inputs.constants(STEPS=FORWARD_STEPS, CHUNK=CHUNK, EVEN=sizes.even),
    )
    return y, last.transpose(1, 2), kept


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, keep):  # type: ignore[no-untyped-def]  # as above
    last = u.new_empty((u.shape[0], *reversed(A.shape)), dtype=torch.float32).transpose(1, 2)
    return u.new_empty(u.shape), last, last.new_empty(_Sizes.of(u, B).kept(keep))


@torch.library.custom_op("wavemamba::selective_scan_triton_backward", mutates_args=())
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
    if kept.numel() == 0:  # the forward pass did not know that a gradient would be asked for
        kept = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, True)[2]
    inputs = _Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order)
    sizes, segments = inputs.sizes, inputs.segments
    dy = u.new_zeros(u.shape) if dy is None else dense_rows(dy)

    def new(*shape: int) -> Tensor:
        return kept.new_empty(shape)

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    du, ddelta, dz = like(u), like(delta), None if z is None else like(z)
    dA = new(sizes.batch * segments.count, sizes.states, sizes.width)
    dB, dC = new(sizes.blocks, *B.shape), new(sizes.blocks, *C.shape)
    dD = None if D is None else new(sizes.batch * segments.count, sizes.width)
    dbias = None if delta_bias is None else new(sizes.batch * segments.count, sizes.width)
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
        new(inputs.programs, CHUNK // BACKWARD_STEPS, sizes.states, sizes.block),
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
        **inputs.constants(STEPS=BACKWARD_STEPS, CHUNK=CHUNK, EVEN=sizes.even),
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
    return [
        new(0) if tensor is None or gradient is None else gradient.to(tensor.dtype).contiguous()
        for tensor, gradient in zip(given, gradients, strict=True)
    ]


@_scan_backward.register_fake
def _(dy, dlast, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, kept):  # type: ignore[no-untyped-def]  # as above
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return [u.new_empty(0, dtype=torch.float32) if t is None else t.new_empty(t.shape) for t in given]


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
    """States in registers, float32; see `wavemamba.ops.selective_scan` for the equation and shapes."""
    keep = any_requires_grad(u, delta, A, B, C, D, z, delta_bias, initial_state)
    y, last_state, _ = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, keep)
    return y, last_state
