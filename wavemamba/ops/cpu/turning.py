"""A matrix written down transposed, by blocks that stay in registers.

PyTorch copies a transposed matrix on one thread, at a fifth of the speed of memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.np.numpy_support import carray
from torch import Tensor

from wavemamba.ops.cpu.kernels import Job, allocate, finish, kernel, take_item
from wavemamba.ops.cpu.runtime import launch
from wavemamba.ops.cpu.simd import get_float, instruction, put_float
from wavemamba.ops.cpu.tensors import address, empty_rows

_SIDE = 16
"""Of a block: as many floats as a cache line has."""
_ROWS, _COLUMNS = 64, 512
"""Of a work item."""
_FLOATS = ir.VectorType(ir.FloatType(), _SIDE)
_LONG, _INT = ir.IntType(64), ir.IntType(32)
_TURN = Job(**dict.fromkeys(("rows", "columns", "panels", "source", "target"), np.int64))


@instruction
def _turn_block(typing: Any, source: Any, across: Any, target: Any, target_across: Any) -> Any:
    """A block of `_SIDE` rows, `across` bytes apart, to its columns, `target_across` bytes apart.

    Source: J. O. Eklundh, "A fast computer method for matrix transposing", 1972: the blocks of half the side change
    places, then those of a quarter inside them, and so on.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def line(first: Any, apart: Any, number: int) -> Any:
            at = builder.add(first, builder.mul(apart, ir.Constant(_LONG, number)))
            return builder.inttoptr(at, _FLOATS.as_pointer())

        def chosen(a: Any, b: Any, lanes: list[int]) -> Any:
            mask = ir.Constant(ir.VectorType(_INT, _SIDE), [ir.Constant(_INT, lane) for lane in lanes])
            return builder.shuffle_vector(a, b, mask)

        source, across, target, target_across = args
        lines = [builder.load(line(source, across, i), align=4) for i in range(_SIDE)]
        step = _SIDE // 2
        while step:
            for i in range(_SIDE):
                if not i & step:
                    a, b = lines[i], lines[i + step]
                    lines[i] = chosen(a, b, [k if not k & step else _SIDE + k - step for k in range(_SIDE)])
                    lines[i + step] = chosen(a, b, [k + step if not k & step else _SIDE + k for k in range(_SIDE)])
            step //= 2
        for i in range(_SIDE):
            builder.store(lines[i], line(target, target_across, i), align=4)
        return context.get_dummy_value()

    return types.void(*(4 * (types.int64,))), codegen


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
        for c in range(first, last, _SIDE):
            for r in range(first_row, last_row, _SIDE):
                source = job.source + across * r + 4 * c
                target = job.target + target_across * c + 4 * r
                if r + _SIDE <= last_row and c + _SIDE <= last:
                    _turn_block(source, across, target, target_across)
                else:
                    for i in range(min(_SIDE, last_row - r)):
                        for k in range(min(_SIDE, last - c)):
                            put_float(target + target_across * k + 4 * i, get_float(source + across * i + 4 * k))
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
