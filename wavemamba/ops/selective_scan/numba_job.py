"""How the numba kernels cut a selective scan into work.

Channels lie in vector lanes, states come one after the other, steps are innermost. A work item is a block of up to
`BLOCK` channels of one batch element and group; of fewer, where there would be too few items for many cores. It walks
the sequence in chunks of `CHUNK` steps; inside a chunk, `LANES` channels at a time, the states of two n stay in
registers over all steps (two, to halve the loads of what they share; the last state of an odd N goes alone), and what
the steps share (step size, input, output) stays in the first-level cache over all n. The forward pass keeps the state
at the start of every chunk; the backward pass recomputes the others from it, chunk by chunk from the end. States, and
what belongs to them, lie in memory as (N, E), so that vectors of channels are read and written whole.

Items do not depend on each other nor on the number of threads, and what they sum over channels or batch they write to
places of their own, so that results are reproducible.
"""

from __future__ import annotations

import numpy as np

from wavemamba.ops.cpu.kernels import ROWS, Job
from wavemamba.ops.cpu.memory import step_row
from wavemamba.ops.cpu.simd import LANES, VECTOR_BYTES, get_float, get_int, inline, put_float, put_int

CHUNK = 32
BLOCK = 128
ITEMS = 16
"""Work items below which blocks are made smaller."""
STEPS = (CHUNK + 1) * VECTOR_BYTES
"""Bytes of a row with one vector a step, and one more: rows at multiples of 4096 would share their cache sets."""

RUNS = 8 * (CHUNK + 1)
"""Bytes of the table that `fill_runs` fills."""

_SIZES = {
    "batches": np.int64,
    "length": np.int64,
    "width": np.int64,  # channels of one group
    "groups": np.int64,
    "states": np.int64,
    "block": np.int64,  # channels of a work item, a multiple of LANES
    "blocks": np.int64,  # work items in a group
    "softplus": np.int64,
}
_INPUTS = {"u": ROWS, "delta": ROWS, "z": ROWS} | dict.fromkeys(
    ("A", "B", "C", "D", "bias", "order", "starts"), np.int64
)
FORWARD = Job(**_SIZES, **_INPUTS, initial=np.int64, y=ROWS, last=np.int64, checkpoints=np.int64)
BACKWARD = Job(
    **_SIZES,
    **_INPUTS,
    checkpoints=np.int64,
    dy=ROWS,
    dlast=np.int64,
    du=ROWS,
    ddelta=ROWS,
    dz=ROWS,
    **dict.fromkeys(("dA", "dB", "dC", "dD", "dbias", "dinitial"), np.int64),
)


@inline
def place_of(job, item):  # type: ignore[no-untyped-def]  # numba infers
    """A work item's block, group and batch element, its channels, the first of them, and those of all groups."""
    s = item % job.blocks
    g = item // job.blocks % job.groups
    b = item // (job.blocks * job.groups)
    return s, g, b, min(job.block, job.width - s * job.block), g * job.width + s * job.block, job.groups * job.width


@inline
def fill_runs(runs, starts, first, steps):  # type: ignore[no-untyped-def]  # numba infers
    """Where the runs of a chunk begin that no start interrupts, and its end, as int64; returns how many there are.

    `starts` is the address of int64 flags, one a step, or 0. A start at the chunk's first step begins no run.
    """
    count = 1
    put_int(runs, 0)
    if starts != 0:
        for k in range(1, steps):
            if get_int(starts + 8 * (first + k)) != 0:
                put_int(runs + 8 * count, k)
                count += 1
    put_int(runs + 8 * count, steps)
    return count


@inline
def starts_here(starts, first):  # type: ignore[no-untyped-def]  # numba infers
    """Whether a chunk's first step starts a sequence."""
    return starts != 0 and get_int(starts + 8 * first) != 0


@inline
def kept_states(job, b, g, s, chunk, chunks, j, padded):  # type: ignore[no-untyped-def]  # numba infers
    """Where the states at the start of a chunk are kept, for `LANES` channels from `j` of block `s` on, or 0.

    Of (B, G, chunks, channels / LANES, padded, LANES): the way in which they are written, whatever the blocks.
    """
    if job.checkpoints == 0:
        return 0
    vectors = (job.width + LANES - 1) // LANES
    at = ((b * job.groups + g) * chunks + chunk) * vectors + (s * job.block + j) // LANES
    return job.checkpoints + at * padded * VECTOR_BYTES


@inline
def load_projections(source, target, job, b, g, first, steps, padded):  # type: ignore[no-untyped-def]  # numba infers
    """One group of B or C, contiguous (B, L, G, N), for the steps of a chunk to a (CHUNK, padded) tile."""
    for k in range(steps):
        row = step_row(job.order, first + k)
        at = source + 4 * ((b * job.length + row) * job.groups + g) * job.states
        for n in range(job.states):
            put_float(target + 4 * (k * padded + n), get_float(at + 4 * n))
        for n in range(job.states, padded):
            put_float(target + 4 * (k * padded + n), np.float32(0.0))
