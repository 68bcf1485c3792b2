"""How a scan is cut into Triton programs, and what they read: sizes, segments, plan."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from wavemamba.ops.gpu.runtime import dense_rows, expect_indexable, launch, multiprocessors, rows_of
from wavemamba.ops.packed import sequence_starts
from wavemamba.ops.selective_scan import triton_segments
from wavemamba.ops.selective_scan.op import ScanInputs

CHUNK = 32
"""Steps between the states that the forward pass keeps; a multiple of both numbers of steps below."""
FORWARD_STEPS = 4
"""Steps whose loads are issued together; with 8 the loop no longer fits the first-level instruction cache."""
BACKWARD_STEPS = 4
"""Steps whose states the backward pass holds in registers; with 6 they spill for 16 states."""
TILE = 512
"""States that a program, one warp, holds: 16 a thread."""
WARPS_PER_MULTIPROCESSOR = 8
"""Programs which keep a multiprocessor busy: two for each of its four schedulers, each with 16 independent states."""
FEWEST_SEGMENTS = 3
"""Segments cost a second pass over the sequence; with two of them nothing is won."""
SHORTEST_SEGMENT = 2 * CHUNK


class Sizes(NamedTuple):
    """Sizes of a scan, and what follows from them for its programs."""

    batch: int
    length: int
    groups: int
    per_group: int
    states: int

    @classmethod
    def of(cls, u: Tensor, B: Tensor) -> Sizes:
        """Read off u (B, L, E) and B (B, L, G, N); symbolic sizes go through."""
        batch, length, width = u.shape
        groups, states = B.shape[2:]
        return cls(batch, length, int(groups), width // int(groups), int(states))  # of the model, not of the call

    @property
    def width(self) -> int:
        """Channels of all groups, E."""
        return self.groups * self.per_group

    @property
    def padded(self) -> int:
        """States of a channel as a power of two."""
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
        """Chunks of the sequence, the last one perhaps shorter."""
        return -(-self.length // CHUNK)

    @property
    def kept(self) -> int:
        """How many numbers the states at the start of every chunk are, (B, chunks, programs, N, BLOCK)."""
        return self.batch * self.chunks * self.groups * self.blocks * self.states * self.block


class Segments(NamedTuple):
    """How many parts of the sequence run side by side, and how many steps each has, a multiple of CHUNK."""

    parts: int
    steps: int

    @classmethod
    def of(cls, sizes: Sizes, device_of: Tensor) -> Segments:
        """As many as the GPU of `device_of` needs to be busy, one where batch and channels suffice."""
        whole = cls(1, sizes.chunks * CHUNK)
        programs = sizes.batch * sizes.groups * sizes.blocks
        wanted = WARPS_PER_MULTIPROCESSOR * multiprocessors(device_of) // max(programs, 1)
        wanted = min(wanted, sizes.length // SHORTEST_SEGMENT)
        if wanted < FEWEST_SEGMENTS:
            return whole
        steps = -(-sizes.chunks // wanted) * CHUNK
        return cls(-(-sizes.length // steps), steps)


class Plan:
    """The inputs as the kernels read them: any strides and dtypes, but dense channels; B and C in float32."""

    def __init__(self, inputs: ScanInputs) -> None:
        u, delta, A, B, C, D, z, delta_bias, self.softplus, _, order, seq_idx = inputs
        expect_indexable(u.shape[1])
        self.sizes = Sizes.of(u, B)
        self.segments = Segments.of(self.sizes, u)
        self.u, self.delta, self.A = dense_rows(u), dense_rows(delta), states_first(A)
        self.z = None if z is None else dense_rows(z)
        self.B, self.C = B.float().contiguous(), C.float().contiguous()
        self.D = None if D is None else D.contiguous()
        self.bias = None if delta_bias is None else delta_bias.contiguous()
        self.order = None if order is None else order.contiguous()
        self.starts = None if seq_idx is None else sequence_starts(seq_idx, order).to(torch.int8)
        self.new = functools.partial(u.new_empty, dtype=torch.float32)

    @property
    def programs(self) -> int:
        """Size of the main kernels' grid."""
        return self.sizes.batch * self.segments.parts * self.sizes.groups * self.sizes.blocks

    def inputs(self) -> tuple[Tensor | None, ...]:
        """Tensors that both main kernels take, in their order."""
        return (self.u, self.delta, self.A, self.B, self.C, self.D, self.z, self.bias, self.order, self.starts)

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
        """Compile-time arguments that every kernel takes, and `more`."""
        return {
            "STATES": self.sizes.states,
            "PADDED": self.sizes.padded,
            "BLOCK": self.sizes.block,
            "SOFTPLUS": self.softplus,
            "WIDE": self.wide,
            "warps": 1,
            **more,
        }

    def _broken(self) -> Tensor | None:
        """(B, segments) int8, the segments in which a sequence starts."""
        if self.starts is None:
            return None
        parts, steps = self.segments
        padded = F.pad(self.starts, (0, parts * steps - self.sizes.length))
        return padded.unflatten(1, (parts, steps)).amax(dim=2).contiguous()

    def entering(self, x: Tensor, BC: Tensor, first: Tensor | None, backward: bool) -> Tensor | None:
        """The state that enters every segment, (B, segments, N, E).

        Args:
            x: (B, L, E), what drives the state: the input, or backward the gradient of the output.
            BC: (B, L, G, N), how it enters the state: B, or backward C.
            first: (B, E, N), the state that enters the sequence; zero where absent.
            backward: run from the end of the sequence to its start.
        """
        first = None if first is None else states_first(first)
        if self.segments.parts == 1:
            return first
        batch, count, states, width = self.sizes.batch, self.segments.parts, self.sizes.states, self.sizes.width
        reached, total = self.new((batch, count, states, width)), self.new((batch, count, width))
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
            self.starts,
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
            self._broken(),
            count,
            width,
            STATES=states,
            BLOCK=128,
            BACKWARD=backward,
        )
        return reached


def states_first(tensor: Tensor) -> Tensor:
    """(..., E, N) to contiguous (..., N, E): neighbouring threads have neighbouring channels."""
    return tensor.float().transpose(-2, -1).contiguous()
