"""The numba loops of attention between narrow heads: queries in vector lanes, or keys, never the channels of a head.

A work item is one head of one sample. Lanes hold `LANES` queries at once for the scores, the result and the gradient of
the queries, and `LANES` keys for those of keys and values. Of the others four are taken together, so that what is
loaded serves four times. Nothing is summed across lanes. Exponentials have base 2, which the scale of the scores takes
in.
"""

from __future__ import annotations

import math

import numpy as np
from numba.np.numpy_support import carray

from wavemamba.ops.cpu.kernels import ROWS, Job, allocate, finish, kernel, take_item
from wavemamba.ops.cpu.math import LOG2_E, exp2_product
from wavemamba.ops.cpu.memory import aligned, clear, load_some, row_address, turn_some
from wavemamba.ops.cpu.simd import (
    LANES,
    SIDE,
    VECTOR_BYTES,
    broadcast,
    get_float,
    inline,
    load,
    put_float,
    splat,
    store,
    where_less,
)

_SIZES = dict.fromkeys(("heads", "queries", "keys", "width"), np.int64)
ATTENTION = Job(**_SIZES, scale=np.float64, q=ROWS, k=ROWS, v=ROWS, y=ROWS, logs=np.int64)
ATTENTION_BACKWARD = Job(
    **_SIZES,
    scale=np.float64,
    **dict.fromkeys(("q", "k", "v", "y", "g", "dq", "dk", "dv"), ROWS),
    logs=np.int64,
)


@inline
def _turn(rows, b, first, count, offset, width, target, factor):  # type: ignore[no-untyped-def]  # numba infers
    """Rows of a head to lanes, `width` vectors of them, times a factor; zeros in the lanes of no row."""
    clear(target, width * VECTOR_BYTES)
    for i in range(0, count, SIDE):
        row = row_address(rows, b, first + i) + offset
        for c in range(0, width, SIDE):
            turn_some(row + 4 * c, rows.row, target + c * VECTOR_BYTES + 4 * i, VECTOR_BYTES, count - i, width - c)
    for c in range(width):
        store(target + c * VECTOR_BYTES, load(target + c * VECTOR_BYTES) * splat(factor))


@inline
def _turn_back(rows, b, first, count, offset, width, source, factors):  # type: ignore[no-untyped-def]  # numba infers
    """Lanes to rows of a head, each times its factor."""
    for c in range(width):
        store(source + c * VECTOR_BYTES, load(source + c * VECTOR_BYTES) * factors)
    for i in range(0, count, SIDE):
        row = row_address(rows, b, first + i) + offset
        for c in range(0, width, SIDE):
            turn_some(source + c * VECTOR_BYTES + 4 * i, VECTOR_BYTES, row + 4 * c, rows.row, width - c, count - i)


@inline
def _four(rows, b, first, last, offset):  # type: ignore[no-untyped-def]  # numba infers
    """Where four rows of a head begin; beyond the last one, where that begins."""
    return (
        row_address(rows, b, first) + offset,
        row_address(rows, b, min(first + 1, last)) + offset,
        row_address(rows, b, min(first + 2, last)) + offset,
        row_address(rows, b, min(first + 3, last)) + offset,
    )


@inline
def _products(turned, a, b, c, d, width):  # type: ignore[no-untyped-def]  # numba infers
    """The products of the lanes with four rows."""
    s, t, u, v = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    for i in range(width):
        lanes = load(turned + i * VECTOR_BYTES)
        s = s + lanes * broadcast(a + 4 * i)
        t = t + lanes * broadcast(b + 4 * i)
        u = u + lanes * broadcast(c + 4 * i)
        v = v + lanes * broadcast(d + 4 * i)
    return s, t, u, v


@inline
def _add_products(sums, p, q, r, s, a, b, c, d, width):  # type: ignore[no-untyped-def]  # numba infers
    """Add four rows to the lanes' sums, each times what it has in a lane."""
    for i in range(width):
        total = load(sums + i * VECTOR_BYTES) + p * broadcast(a + 4 * i)
        total = total + q * broadcast(b + 4 * i)
        total = total + r * broadcast(c + 4 * i)
        store(sums + i * VECTOR_BYTES, total + s * broadcast(d + 4 * i))


@inline
def _power(x):  # type: ignore[no-untyped-def]  # numba infers
    return exp2_product(x, splat(1.0))


@kernel(ATTENTION)
def attention(pointer):  # type: ignore[no-untyped-def]  # numba infers
    """`logs` (B, heads, L) gets, for each query, the logarithm to base 2 of the sum of its powers."""
    jobs = carray(pointer, 1)
    job = jobs[0]
    queries, keys, width = job.queries, job.keys, job.width
    padded = (keys + 3) // 4 * 4
    scratch = allocate((2 * width + padded + 1) * VECTOR_BYTES)
    if scratch == 0:
        return
    turned = aligned(scratch)
    sums = turned + width * VECTOR_BYTES
    scores = sums + width * VECTOR_BYTES
    factor = job.scale * LOG2_E
    least = splat(-math.inf)
    done = 0
    while True:
        item = take_item(jobs.ctypes.data)
        if item >= job.count:
            break
        b, offset = item // job.heads, item % job.heads * width * 4
        for first in range(0, queries, LANES):
            count = min(LANES, queries - first)
            _turn(job.q, b, first, count, offset, width, turned, factor)
            most = least
            for j in range(0, keys, 4):
                k0, k1, k2, k3 = _four(job.k, b, j, keys - 1, offset)
                s0, s1, s2, s3 = _products(turned, k0, k1, k2, k3, width)
                if j + 1 >= keys:
                    s1 = least
                if j + 2 >= keys:
                    s2 = least
                if j + 3 >= keys:
                    s3 = least
                at = scores + j * VECTOR_BYTES
                store(at, s0)
                store(at + VECTOR_BYTES, s1)
                store(at + 2 * VECTOR_BYTES, s2)
                store(at + 3 * VECTOR_BYTES, s3)
                a, c = where_less(s0, s1, s1, s0), where_less(s2, s3, s3, s2)
                a = where_less(a, c, c, a)
                most = where_less(most, a, a, most)
            total = splat(0.0)
            clear(sums, width * VECTOR_BYTES)
            for j in range(0, keys, 4):
                at = scores + j * VECTOR_BYTES
                p0, p1 = _power(load(at) - most), _power(load(at + VECTOR_BYTES) - most)
                p2, p3 = _power(load(at + 2 * VECTOR_BYTES) - most), _power(load(at + 3 * VECTOR_BYTES) - most)
                total = total + ((p0 + p1) + (p2 + p3))
                v0, v1, v2, v3 = _four(job.v, b, j, keys - 1, offset)
                _add_products(sums, p0, p1, p2, p3, v0, v1, v2, v3, width)
            _turn_back(job.y, b, first, count, offset, width, sums, splat(1.0) / total)
            store(turned, most)
            store(sums, total)
            for i in range(count):
                log = get_float(turned + 4 * i) + math.log2(get_float(sums + 4 * i))
                put_float(job.logs + 4 * (item * queries + first + i), np.float32(log))
        done += 1
    finish(jobs.ctypes.data, done, scratch)


@kernel(ATTENTION_BACKWARD)
def attention_backward(pointer):  # type: ignore[no-untyped-def]  # numba infers
    """Gradients: those of the queries with queries in the lanes, then those of keys and values with keys there."""
    jobs = carray(pointer, 1)
    job = jobs[0]
    queries, keys, width = job.queries, job.keys, job.width
    padded = (queries + LANES - 1) // LANES * VECTOR_BYTES
    scratch = allocate((4 * width + 2) * VECTOR_BYTES + padded)
    if scratch == 0:
        return
    turned = aligned(scratch)
    other = turned + width * VECTOR_BYTES
    sums = other + width * VECTOR_BYTES
    more = sums + width * VECTOR_BYTES
    spare = more + width * VECTOR_BYTES
    means = spare + VECTOR_BYTES  # of every query: what its powers' gradients are on average
    factor, scale = job.scale * LOG2_E, splat(job.scale)
    none = splat(0.0)
    done = 0
    while True:
        item = take_item(jobs.ctypes.data)
        if item >= job.count:
            break
        b, offset = item // job.heads, item % job.heads * width * 4
        for first in range(0, queries, LANES):
            count = min(LANES, queries - first)
            _turn(job.g, b, first, count, offset, width, other, 1.0)
            _turn(job.y, b, first, count, offset, width, turned, 1.0)
            mean = none
            for c in range(width):
                mean = mean + load(other + c * VECTOR_BYTES) * load(turned + c * VECTOR_BYTES)
            store(means + 4 * first, mean)
            _turn(job.q, b, first, count, offset, width, turned, factor)
            logs = load_some(job.logs + 4 * (item * queries + first), count, spare)
            clear(sums, width * VECTOR_BYTES)
            for j in range(0, keys, 4):
                k0, k1, k2, k3 = _four(job.k, b, j, keys - 1, offset)
                v0, v1, v2, v3 = _four(job.v, b, j, keys - 1, offset)
                s0, s1, s2, s3 = _products(turned, k0, k1, k2, k3, width)
                d0, d1, d2, d3 = _products(other, v0, v1, v2, v3, width)
                d0, d1 = _power(s0 - logs) * (d0 - mean), _power(s1 - logs) * (d1 - mean)
                d2, d3 = _power(s2 - logs) * (d2 - mean), _power(s3 - logs) * (d3 - mean)
                if j + 1 >= keys:
                    d1 = none
                if j + 2 >= keys:
                    d2 = none
                if j + 3 >= keys:
                    d3 = none
                _add_products(sums, d0, d1, d2, d3, k0, k1, k2, k3, width)
            _turn_back(job.dq, b, first, count, offset, width, sums, scale)
        for first in range(0, keys, LANES):
            count = min(LANES, keys - first)
            _turn(job.k, b, first, count, offset, width, turned, factor)
            _turn(job.v, b, first, count, offset, width, other, 1.0)
            clear(sums, width * VECTOR_BYTES)
            clear(more, width * VECTOR_BYTES)
            for j in range(0, queries, 4):
                q0, q1, q2, q3 = _four(job.q, b, j, queries - 1, offset)
                g0, g1, g2, g3 = _four(job.g, b, j, queries - 1, offset)
                s0, s1, s2, s3 = _products(turned, q0, q1, q2, q3, width)
                d0, d1, d2, d3 = _products(other, g0, g1, g2, g3, width)
                log = job.logs + 4 * (item * queries + j)
                mean = means + 4 * j
                p0, p1, p2, p3 = _power(s0 - broadcast(log)), none, none, none
                if j + 1 < queries:
                    p1 = _power(s1 - broadcast(log + 4))
                if j + 2 < queries:
                    p2 = _power(s2 - broadcast(log + 8))
                if j + 3 < queries:
                    p3 = _power(s3 - broadcast(log + 12))
                _add_products(more, p0, p1, p2, p3, g0, g1, g2, g3, width)
                d0, d1 = p0 * (d0 - broadcast(mean)), p1 * (d1 - broadcast(mean + 4))
                d2, d3 = p2 * (d2 - broadcast(mean + 8)), p3 * (d3 - broadcast(mean + 12))
                _add_products(sums, d0, d1, d2, d3, q0, q1, q2, q3, width)
            _turn_back(job.dk, b, first, count, offset, width, sums, scale)
            _turn_back(job.dv, b, first, count, offset, width, more, splat(1.0))
        done += 1
    finish(jobs.ctypes.data, done, scratch)
