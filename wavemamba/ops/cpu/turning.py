"""A matrix written down transposed, by blocks that stay in registers.

PyTorch copies a transposed matrix on one thread, at a fifth of the speed of memory.
"""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray
from torch import Tensor

from wavemamba.ops.cpu.kernels import Job, allocate, finish, kernel, take_item
from wavemamba.ops.cpu.memory import turn_some
from wavemamba.ops.cpu.runtime import launch
from wavemamba.ops.cpu.simd import SIDE
from wavemamba.ops.cpu.tensors import address, empty_rows

_ROWS, _COLUMNS = 64, 512
"""Of a work item."""
_TURN = Job(**dict.fromkeys(("rows", "columns", "panels", "source", "target"), np.int64))


@kernel(_TURN)
def _turn(pointer):  # type: ignore[no-untyped-def]  # numba infers
    """Transpose a contiguous (rows, columns) matrix; `panels` is how many items its width has."""
    jobs = carray(pointer, 1)
    job = jobs[0]
    across, target_across = 4 * job.columns, 4 * job.rows
    scratch = allocate(64)
    if scratch == 0:
        return
    done = 0
    while True:
        item = take_item(jobs.ctypes.data)
        if item >= job.count:
            break
        first_row, first = item // job.panels * _ROWS, item % job.panels * _COLUMNS
        last_row, last = min(first_row + _ROWS, job.rows), min(first + _COLUMNS, job.columns)
        for c in range(first, last, SIDE):
            for r in range(first_row, last_row, SIDE):
                source = job.source + across * r + 4 * c
                target = job.target + target_across * c + 4 * r
                turn_some(source, across, target, target_across, last_row - r, last - c)
        done += 1
    finish(jobs.ctypes.data, done, scratch)


def turned(x: Tensor) -> Tensor:
    """`x.t().contiguous()` of a contiguous float32 matrix (R, C): (C, R)."""
    rows, columns = x.shape
    y = empty_rows((columns, rows))
    panels = -(-columns // _COLUMNS)
    job = _TURN.fill(
        -(-rows // _ROWS) * panels, rows=rows, columns=columns, panels=panels, source=address(x), target=address(y)
    )
    launch(_turn, job)
    return y
