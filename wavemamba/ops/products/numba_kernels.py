"""The numba loops of matrix products, and of matrices written down transposed."""

from __future__ import annotations

import numpy as np

from wavemamba.ops.cpu.kernels import Job, kernel
from wavemamba.ops.cpu.memory import turn
from wavemamba.ops.cpu.simd import LANES, VECTOR_BYTES, get_int, inline, put_int
from wavemamba.ops.products.numba_tile import HEIGHT, half_tile, tile

_HEAD = 64
"""Bytes of scratch memory before the packed share, which begin with its number."""
TURNED_ROWS, TURNED_COLUMNS = 64, 512
"""Of a work item."""
TURN = Job(**dict.fromkeys(("rows", "columns", "panels", "source", "target"), np.int64))
MULTIPLY = Job(
    **dict.fromkeys(
        ("rows", "inner", "columns", "run", "runs", "share", "a", "a_row", "a_step", "b", "b_row"), np.int64
    ),
    **dict.fromkeys(("b_is_turned", "bias", "c", "c_row", "c_share"), np.int64),
)


@kernel(TURN)
def turn_matrix(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """Transpose a contiguous (rows, columns) matrix; `panels` is how many items its width has."""
    across, target_across = 4 * job.columns, 4 * job.rows
    first_row, first = item // job.panels * TURNED_ROWS, item % job.panels * TURNED_COLUMNS
    last_row, last = min(first_row + TURNED_ROWS, job.rows), min(first + TURNED_COLUMNS, job.columns)
    source = job.source + across * first_row + 4 * first
    target = job.target + target_across * first + 4 * first_row
    turn(source, across, target, target_across, last_row - first_row, last - first)


@inline
def _pack(b, b_row, steps, columns, target):  # type: ignore[no-untyped-def]  # numba infers
    """`steps` rows of a matrix whose columns are dense to panels of `LANES` columns; beyond the last one, anything."""
    for column in range(0, columns, LANES):
        panel = target + 4 * column * steps
        turn(b + column * b_row, b_row, panel, VECTOR_BYTES, min(LANES, columns - column), steps)


def _scratch(job):  # type: ignore[no-untyped-def]  # numba infers
    panels = (job.columns + LANES - 1) // LANES
    return _HEAD + (job.share * panels * VECTOR_BYTES if job.b_is_turned else 0)


def _prepare(job, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """No share is packed yet."""
    put_int(scratch, -1)


@kernel(MULTIPLY, _scratch, _prepare)
def multiply(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """`c = a @ b + bias`, or shares of it, each over `share` of the inner numbers.

    A work item is `run` rows of a share; `runs` is how many of them a share has. `rows` is at least `HEIGHT`: the last
    tile of a run overlaps the one before it.
    """
    rows, columns, b_row, b_is_turned = job.rows, job.columns, job.b_row, job.b_is_turned != 0
    packed = scratch + _HEAD
    share, first_row = item // job.runs, item % job.runs * job.run
    first = share * job.share
    steps = min(job.share, job.inner - first)
    b, b_step, panel = job.b + first * b_row, b_row, VECTOR_BYTES
    if b_is_turned:
        if share != get_int(scratch):
            _pack(job.b + 4 * first, b_row, steps, columns, packed)
            put_int(scratch, share)
        b, b_step, panel = packed, VECTOR_BYTES, steps * VECTOR_BYTES
    a, c = job.a + first * job.a_step, job.c + share * job.c_share
    for column in range(0, columns, LANES):
        at, left = b + column // LANES * panel, columns - column
        bias = job.bias if job.bias == 0 else job.bias + 4 * column
        for start in range(first_row, min(first_row + job.run, rows), HEIGHT):
            row = min(start, rows - HEIGHT)
            a_first, c_first = a + row * job.a_row, c + row * job.c_row + 4 * column
            if left <= LANES // 2:
                half_tile(a_first, job.a_row, job.a_step, at, b_step, steps, c_first, job.c_row, bias, left)
            else:
                tile(a_first, job.a_row, job.a_step, at, b_step, steps, c_first, job.c_row, bias, min(left, LANES))
