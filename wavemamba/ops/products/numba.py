"""What the numba kernels of products are given, and what they return."""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.ops.cpu.runtime import launch, sum_slices
from wavemamba.ops.cpu.tensors import address, empty_rows, origin
from wavemamba.ops.products import numba_kernels as kernels
from wavemamba.ops.products.numba_tile import HEIGHT

_SHARE, _MOST_SHARES = 128, 16
"""Inner numbers of a share at least, where there are many of them for few rows, and how many shares there may be."""
_ITEMS_A_THREAD = 4
_LEAST_WORK = 2**18
"""Multiplications of a work item: fewer are done sooner than another thread is there."""


def multiplied(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """`a @ b + bias` of float32 matrices: (M, K), of any strides, and (K, N), of which rows or columns are dense.

    M is at least `HEIGHT`, K and N at least 1. Sums do not depend on the number of threads.
    """
    (rows, inner), columns = a.shape, b.shape[1]
    assert rows >= HEIGHT
    is_shared = bias is None and inner >= 2 * max(rows, _SHARE)
    share = max(_SHARE, -(-inner // _MOST_SHARES)) if is_shared else inner
    shares = -(-inner // share)
    worth_it = max(1, rows * share * columns // _LEAST_WORK)
    runs = min(-(-_ITEMS_A_THREAD * torch.get_num_threads() // shares), worth_it)
    run = -(-rows // (runs * HEIGHT)) * HEIGHT
    runs = -(-rows // run)
    c = empty_rows((shares, rows, columns) if shares > 1 else (rows, columns))
    is_turned = b.stride(1) != 1 and columns > 1
    job = kernels.MULTIPLY.fill(
        shares * runs,
        rows=rows,
        inner=inner,
        columns=columns,
        run=run,
        runs=runs,
        share=share,
        a=origin(a),
        a_row=4 * a.stride(0),
        a_step=4 * a.stride(1),
        b=origin(b),
        b_row=4 * b.stride(1 if is_turned else 0),
        b_is_turned=is_turned,
        bias=address(bias),
        c=address(c),
        c_row=4 * columns,
        c_share=4 * rows * columns,
    )
    launch(kernels.multiply, job)
    return sum_slices(c) if shares > 1 else c


def turned(x: Tensor) -> Tensor:
    """`x.t().contiguous()` of a contiguous float32 matrix (R, C): (C, R)."""
    rows, columns = x.shape
    y = empty_rows((columns, rows))
    panels = -(-columns // kernels.TURNED_COLUMNS)
    job = kernels.TURN.fill(
        -(-rows // kernels.TURNED_ROWS) * panels,
        rows=rows,
        columns=columns,
        panels=panels,
        source=address(x),
        target=address(y),
    )
    launch(kernels.turn_matrix, job)
    return y
