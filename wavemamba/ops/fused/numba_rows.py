"""The numba loops of norms and gated GELUs: rows of channels, channels in vector lanes.

A work item is a run of rows. Gradients of what all rows of an item share are summed there; the items' sums are added
afterwards, in the same order for any number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from wavemamba.ops.cpu.kernels import ROWS, Job, kernel, one_vector
from wavemamba.ops.cpu.math import sigmoid
from wavemamba.ops.cpu.memory import clear, load_at, load_some, row_address, store_at, store_some
from wavemamba.ops.cpu.simd import (
    LANES,
    VECTOR_BYTES,
    get_float,
    inline,
    load,
    put_float,
    splat,
    store,
    sum_half,
)

_RUN = dict.fromkeys(("rows", "run", "width"), np.int64)
NORM = Job(**_RUN, eps=np.float64, x=ROWS, weight=np.int64, y=ROWS, scales=np.int64)
NORM_BACKWARD = Job(**_RUN, g=ROWS, x=ROWS, weight=np.int64, scales=np.int64, dx=ROWS, dweight=np.int64)
GELU = Job(**_RUN, x=ROWS, y=ROWS)
GELU_BACKWARD = Job(**_RUN, g=ROWS, x=ROWS, dx=ROWS)


@inline
def _padded(width):  # type: ignore[no-untyped-def]  # numba infers
    """Bytes of a row of whole vectors."""
    return VECTOR_BYTES * ((width + LANES - 1) // LANES)


@inline
def _sum(value):  # type: ignore[no-untyped-def]  # numba infers
    return sum_half(value, 0) + sum_half(value, 1)


@kernel(NORM, one_vector)
def rms_norm(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """Norm rows; `scales` gets what each one was multiplied by."""
    width = job.width
    spare = scratch
    for row in range(item * job.run, min((item + 1) * job.run, job.rows)):
        source, target = row_address(job.x, 0, row), row_address(job.y, 0, row)
        squares = splat(0.0)
        for j in range(0, width, LANES):
            x = load_some(source + 4 * j, width - j, spare)
            squares = squares + x * x
        factor = np.float32(1.0 / math.sqrt(_sum(squares) / width + job.eps))
        put_float(job.scales + 4 * row, factor)
        for j in range(0, width, LANES):
            y = load_some(source + 4 * j, width - j, spare) * splat(factor)
            store_some(target + 4 * j, y * load_some(job.weight + 4 * j, width - j, spare), width - j, spare)


@kernel(NORM_BACKWARD, lambda job: _padded(job.width) + VECTOR_BYTES)
def rms_norm_backward(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """Gradients; `dweight` (items, C) is one item's share each."""
    width = job.width
    padded = _padded(width)
    shares = scratch
    spare = shares + padded
    clear(shares, padded)
    for row in range(item * job.run, min((item + 1) * job.run, job.rows)):
        source, flowing = row_address(job.x, 0, row), row_address(job.g, 0, row)
        factor = get_float(job.scales + 4 * row)
        products = splat(0.0)
        for j in range(0, width, LANES):
            gx = load_some(flowing + 4 * j, width - j, spare) * load_some(source + 4 * j, width - j, spare)
            store(shares + 4 * j, load(shares + 4 * j) + gx * splat(factor))
            products = products + gx * load_some(job.weight + 4 * j, width - j, spare)
        # factor**2 first: the mean of products is as small as factor is large.
        back = np.float32(factor * factor * (_sum(products) / width))
        target = row_address(job.dx, 0, row)
        for j in range(0, width, LANES):
            gw = load_some(flowing + 4 * j, width - j, spare) * load_some(job.weight + 4 * j, width - j, spare)
            x = load_some(source + 4 * j, width - j, spare)
            store_some(target + 4 * j, splat(factor) * (gw - x * splat(back)), width - j, spare)
    for j in range(0, width, LANES):
        store_some(job.dweight + 4 * (item * width + j), load(shares + 4 * j), width - j, spare)


_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
_CUBE = 0.044715


@inline
def _share(a):  # type: ignore[no-untyped-def]  # numba infers
    """GELU_tanh(a) / a, which is `sigmoid(2 sqrt(2 / pi) (a + 0.044715 a**3))`."""
    return sigmoid(splat(_SLOPE) * a * (splat(1.0) + splat(_CUBE) * a * a))


@kernel(GELU, one_vector)
def gated_gelu(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """`width` is that of a half."""
    width = job.width
    spare = scratch
    for row in range(item * job.run, min((item + 1) * job.run, job.rows)):
        for j in range(0, width, LANES):
            a = load_at(job.x, 0, row, j, width - j, spare)
            b = load_at(job.x, 0, row, width + j, width - j, spare)
            store_at(job.y, 0, row, j, a * _share(a) * b, width - j, spare)


@kernel(GELU_BACKWARD, one_vector)
def gated_gelu_backward(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """Both halves of the gradient, side by side."""
    width = job.width
    spare = scratch
    for row in range(item * job.run, min((item + 1) * job.run, job.rows)):
        source, flowing, target = (
            row_address(job.x, 0, row),
            row_address(job.g, 0, row),
            row_address(job.dx, 0, row),
        )
        for j in range(0, width, LANES):
            a = load_some(source + 4 * j, width - j, spare)
            b = load_some(source + 4 * (width + j), width - j, spare)
            g = load_some(flowing + 4 * j, width - j, spare)
            share = _share(a)
            # What is zero first: the other factors may be infinite together.
            bend = share * (splat(1.0) - share) * (splat(_SLOPE) * a)
            slope = share + bend * (splat(1.0) + splat(3.0 * _CUBE) * a * a)
            store_some(target + 4 * j, g * b * slope, width - j, spare)
            store_some(target + 4 * (width + j), g * a * share, width - j, spare)
