"""The numba loops of attention between narrow heads: queries in vector lanes, or keys, never the channels of a head.

A work item is one head of one sample, or two of them, each in half the lanes, where those hold all queries and all
keys. Lanes hold up to `LANES` queries for the scores, the result and the gradient of the queries, and `LANES` keys for
those of keys and values. Of the others four are taken together, so that what is loaded serves four times. Nothing is
summed across lanes. Exponentials have base 2, which the scale of the scores takes in.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.extending import overload
from numba.np.numpy_support import carray

from wavemamba.ops.cpu.kernels import ROWS, Job, allocate, finish, kernel, take_item
from wavemamba.ops.cpu.math import LOG2_E, exp2_product
from wavemamba.ops.cpu.memory import (
    NARROW,
    aligned,
    clear,
    load_channels,
    row_address,
    store_some,
    turn_some,
)
from wavemamba.ops.cpu.simd import (
    LANES,
    SIDE,
    VECTOR_BYTES,
    broadcast_parts,
    get_float,
    inline,
    load,
    put_float,
    splat,
    store,
    where_less,
)

_HALF_BYTES = VECTOR_BYTES // 2
_SIZES = dict.fromkeys(("pairs", "all_heads", "heads", "queries", "keys", "width"), np.int64)
ATTENTION = Job(**_SIZES, scale=np.float64, q=ROWS, k=ROWS, v=ROWS, y=ROWS, most=np.int64, share=np.int64)
ATTENTION_BACKWARD = Job(
    **_SIZES,
    scale=np.float64,
    **dict.fromkeys(("q", "k", "v", "y", "g", "dq", "dk", "dv"), ROWS),
    most=np.int64,
    share=np.int64,
)


def _each(numbers: Any, size: int, start: int) -> Any:
    """`start + number * size` for each of one or two numbers."""


@overload(_each, jit_options={"forceinline": True})
def _emit_each(numbers, size, start):  # type: ignore[no-untyped-def]  # numba infers
    if len(numbers) == 1:
        return lambda numbers, size, start: (start + numbers[0] * size,)
    return lambda numbers, size, start: (start + numbers[0] * size, start + numbers[1] * size)


@inline
def _head(rows, heads, width, head):  # type: ignore[no-untyped-def]  # numba infers
    return row_address(rows, head // heads, 0) + head % heads * width * rows.size


def _begins(rows: Any, heads: int, width: int, taken: Any) -> Any:
    """Where each of one or two heads begins, which are counted over all samples."""


@overload(_begins, jit_options={"forceinline": True})
def _emit_begins(rows, heads, width, taken):  # type: ignore[no-untyped-def]  # numba infers
    if len(taken) == 1:
        return lambda rows, heads, width, taken: (_head(rows, heads, width, taken[0]),)
    return lambda rows, heads, width, taken: (_head(rows, heads, width, taken[0]), _head(rows, heads, width, taken[1]))


@inline
def _along(addresses, count):  # type: ignore[no-untyped-def]  # numba infers
    """So many bytes after each address."""
    return _each(addresses, 1, count)


@inline
def _widen(begins, row, size, count, width, target):  # type: ignore[no-untyped-def]  # numba infers
    """Where the rows of each head lie as float32, and how far apart: where they were, or copies in the target."""
    if size != NARROW:
        return begins, row
    spare = target
    first = target + VECTOR_BYTES
    for part in range(len(begins)):
        for i in range(count):
            source, to = begins[part] + i * row, first + 4 * width * (part * count + i)
            for c in range(0, width, LANES):
                store_some(to + 4 * c, load_channels(source + NARROW * c, size, width - c, spare), width - c, spare)
    return _copies(begins, first, 4 * width * count), 4 * width


def _copies(begins: Any, first: int, apart: int) -> Any:
    """Addresses so far apart, as many as there are in a tuple."""


@overload(_copies, jit_options={"forceinline": True})
def _emit_copies(begins, first, apart):  # type: ignore[no-untyped-def]  # numba infers
    if len(begins) == 1:
        return lambda begins, first, apart: (first,)
    return lambda begins, first, apart: (first, first + apart)


@inline
def _turn(begins, row, first, count, width, target, factor):  # type: ignore[no-untyped-def]  # numba infers
    """Rows of each head to its lanes, `width` vectors of them, times a factor; zeros in the lanes of no row."""
    clear(target, width * VECTOR_BYTES)
    for part in range(len(begins)):
        for i in range(0, count, SIDE):
            source, to = begins[part] + (first + i) * row, target + part * _HALF_BYTES + 4 * i
            for c in range(0, width, SIDE):
                turn_some(source + 4 * c, row, to + c * VECTOR_BYTES, VECTOR_BYTES, count - i, width - c)
    for c in range(width):
        store(target + c * VECTOR_BYTES, load(target + c * VECTOR_BYTES) * splat(factor))


@inline
def _turn_back(begins, row, first, count, width, source, factors):  # type: ignore[no-untyped-def]  # numba infers
    """Lanes to rows of their heads, each times its factor."""
    for c in range(width):
        store(source + c * VECTOR_BYTES, load(source + c * VECTOR_BYTES) * factors)
    for part in range(len(begins)):
        for i in range(0, count, SIDE):
            to, lanes = begins[part] + (first + i) * row, source + part * _HALF_BYTES + 4 * i
            for c in range(0, width, SIDE):
                turn_some(lanes + c * VECTOR_BYTES, VECTOR_BYTES, to + 4 * c, row, width - c, count - i)


@inline
def _spread(begins, first, count, target):  # type: ignore[no-untyped-def]  # numba infers
    """One number a row of each head to its lanes; the lanes of no row keep what they have."""
    for part in range(len(begins)):
        for i in range(count):
            put_float(target + part * _HALF_BYTES + 4 * i, get_float(begins[part] + 4 * (first + i)))
    return load(target)


@inline
def _gather(begins, first, count, value, spare):  # type: ignore[no-untyped-def]  # numba infers
    """The way back."""
    store(spare, value)
    for part in range(len(begins)):
        for i in range(count):
            put_float(begins[part] + 4 * (first + i), get_float(spare + part * _HALF_BYTES + 4 * i))


@inline
def _four(begins, row, first, last):  # type: ignore[no-untyped-def]  # numba infers
    """Where four rows of the heads begin; beyond the last one, where that begins."""
    return (
        _along(begins, first * row),
        _along(begins, min(first + 1, last) * row),
        _along(begins, min(first + 2, last) * row),
        _along(begins, min(first + 3, last) * row),
    )


@inline
def _products(turned, a, b, c, d, width):  # type: ignore[no-untyped-def]  # numba infers
    """The products of the lanes with four rows."""
    s, t, u, v = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    for i in range(width):
        lanes = load(turned + i * VECTOR_BYTES)
        s = s + lanes * broadcast_parts(_along(a, 4 * i))
        t = t + lanes * broadcast_parts(_along(b, 4 * i))
        u = u + lanes * broadcast_parts(_along(c, 4 * i))
        v = v + lanes * broadcast_parts(_along(d, 4 * i))
    return s, t, u, v


@inline
def _add_products(sums, p, q, r, s, a, b, c, d, width):  # type: ignore[no-untyped-def]  # numba infers
    """Add four rows to the lanes' sums, each times what it has in a lane."""
    for i in range(width):
        total = load(sums + i * VECTOR_BYTES) + p * broadcast_parts(_along(a, 4 * i))
        total = total + q * broadcast_parts(_along(b, 4 * i))
        total = total + r * broadcast_parts(_along(c, 4 * i))
        store(sums + i * VECTOR_BYTES, total + s * broadcast_parts(_along(d, 4 * i)))


@inline
def _power(x):  # type: ignore[no-untyped-def]  # numba infers
    return exp2_product(x, splat(1.0))


@inline
def _room(job, copies):  # type: ignore[no-untyped-def]  # numba infers
    """Bytes of so many copies of an item's rows, none where those are float32."""
    parts = 2 if job.pairs else 1
    bytes_ = VECTOR_BYTES + 4 * job.width * parts * max(job.queries, job.keys)
    return copies * bytes_ if job.q.size == NARROW else 0


@inline
def _taken(job, rows, count, heads, copies):  # type: ignore[no-untyped-def]  # numba infers
    """Where the rows of each head lie as float32, and how far apart."""
    return _widen(_begins(rows, job.heads, job.width, heads), rows.row, rows.size, count, job.width, copies)


@inline
def _attend(job, heads, scratch):  # type: ignore[no-untyped-def]  # numba infers
    queries, keys, width = job.queries, job.keys, job.width
    turned = scratch
    sums = turned + width * VECTOR_BYTES
    scores = sums + width * VECTOR_BYTES
    factor = job.scale * LOG2_E
    least = splat(-math.inf)
    copies = scores + ((keys + 3) // 4 * 4 + 1) * VECTOR_BYTES
    room = _room(job, 1)
    q, q_row = _taken(job, job.q, queries, heads, copies)
    k, k_row = _taken(job, job.k, keys, heads, copies + room)
    v, v_row = _taken(job, job.v, keys, heads, copies + 2 * room)
    y = _begins(job.y, job.heads, width, heads)
    largest, shares = _each(heads, 4 * queries, job.most), _each(heads, 4 * queries, job.share)
    for first in range(0, queries, LANES):
        count = min(LANES, queries - first)
        _turn(q, q_row, first, count, width, turned, factor)
        most = least
        for j in range(0, keys, 4):
            k0, k1, k2, k3 = _four(k, k_row, j, keys - 1)
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
            v0, v1, v2, v3 = _four(v, v_row, j, keys - 1)
            _add_products(sums, p0, p1, p2, p3, v0, v1, v2, v3, width)
        share = splat(1.0) / total
        _turn_back(y, job.y.row, first, count, width, sums, share)
        _gather(largest, first, count, most, turned)
        _gather(shares, first, count, share, turned)


@kernel(ATTENTION)
def attention(pointer):  # type: ignore[no-untyped-def]  # numba infers
    """`most` and `share` (B, heads, L) get, for each query, its largest score, and one by the sum of its powers."""
    jobs = carray(pointer, 1)
    job = jobs[0]
    scratch = allocate((2 * job.width + (job.keys + 3) // 4 * 4 + 2) * VECTOR_BYTES + _room(job, 3))
    if scratch == 0:
        return
    done = 0
    while True:
        item = take_item(jobs.ctypes.data)
        if item >= job.count:
            break
        if job.pairs:
            _attend(job, (2 * item, min(2 * item + 1, job.all_heads - 1)), aligned(scratch))
        else:
            _attend(job, (item,), aligned(scratch))
        done += 1
    finish(jobs.ctypes.data, done, scratch)


@inline
def _differentiate(job, heads, parts, scratch):  # type: ignore[no-untyped-def]  # numba infers
    queries, keys, width = job.queries, job.keys, job.width
    turned = scratch
    other = turned + width * VECTOR_BYTES
    sums = other + width * VECTOR_BYTES
    more = sums + width * VECTOR_BYTES
    spare = more + width * VECTOR_BYTES
    means = spare + VECTOR_BYTES  # of every query: what its powers' gradients are on average
    factor, scale, none = job.scale * LOG2_E, splat(job.scale), splat(0.0)
    copies = means + (queries + LANES - 1) // LANES * VECTOR_BYTES
    room = _room(job, 1)
    q, q_row = _taken(job, job.q, queries, heads, copies)
    k, k_row = _taken(job, job.k, keys, heads, copies + room)
    v, v_row = _taken(job, job.v, keys, heads, copies + 2 * room)
    g, g_row = _taken(job, job.g, queries, heads, copies + 3 * room)
    y, dq = _begins(job.y, job.heads, width, heads), _begins(job.dq, job.heads, width, heads)
    dk, dv = _begins(job.dk, job.heads, width, heads), _begins(job.dv, job.heads, width, heads)
    largest, shares = _each(heads, 4 * queries, job.most), _each(heads, 4 * queries, job.share)
    store(spare, none)
    for first in range(0, queries, LANES):
        count = min(LANES, queries - first)
        _turn(g, g_row, first, count, width, other, 1.0)
        _turn(y, job.y.row, first, count, width, turned, 1.0)
        mean = none
        for c in range(width):
            mean = mean + load(other + c * VECTOR_BYTES) * load(turned + c * VECTOR_BYTES)
        store(means + 4 * first, mean)
        _turn(q, q_row, first, count, width, turned, factor)
        most = _spread(largest, first, count, spare)
        share = _spread(shares, first, count, spare)
        clear(sums, width * VECTOR_BYTES)
        for j in range(0, keys, 4):
            k0, k1, k2, k3 = _four(k, k_row, j, keys - 1)
            v0, v1, v2, v3 = _four(v, v_row, j, keys - 1)
            s0, s1, s2, s3 = _products(turned, k0, k1, k2, k3, width)
            d0, d1, d2, d3 = _products(other, v0, v1, v2, v3, width)
            d0, d1 = _power(s0 - most) * share * (d0 - mean), _power(s1 - most) * share * (d1 - mean)
            d2, d3 = _power(s2 - most) * share * (d2 - mean), _power(s3 - most) * share * (d3 - mean)
            if j + 1 >= keys:
                d1 = none
            if j + 2 >= keys:
                d2 = none
            if j + 3 >= keys:
                d3 = none
            _add_products(sums, d0, d1, d2, d3, k0, k1, k2, k3, width)
        _turn_back(dq, job.dq.row, first, count, width, sums, scale)
    averages = _each(parts, _HALF_BYTES, means)
    for first in range(0, keys, LANES):
        count = min(LANES, keys - first)
        _turn(k, k_row, first, count, width, turned, factor)
        _turn(v, v_row, first, count, width, other, 1.0)
        clear(sums, width * VECTOR_BYTES)
        clear(more, width * VECTOR_BYTES)
        for j in range(0, queries, 4):
            q0, q1, q2, q3 = _four(q, q_row, j, queries - 1)
            g0, g1, g2, g3 = _four(g, g_row, j, queries - 1)
            m0, m1, m2, m3 = _four(largest, 4, j, queries - 1)
            r0, r1, r2, r3 = _four(shares, 4, j, queries - 1)
            a0, a1, a2, a3 = _four(averages, 4, j, queries - 1)
            s0, s1, s2, s3 = _products(turned, q0, q1, q2, q3, width)
            d0, d1, d2, d3 = _products(other, g0, g1, g2, g3, width)
            p0 = _power(s0 - broadcast_parts(m0)) * broadcast_parts(r0)
            p1 = _power(s1 - broadcast_parts(m1)) * broadcast_parts(r1)
            p2 = _power(s2 - broadcast_parts(m2)) * broadcast_parts(r2)
            p3 = _power(s3 - broadcast_parts(m3)) * broadcast_parts(r3)
            if j + 1 >= queries:
                p1 = none
            if j + 2 >= queries:
                p2 = none
            if j + 3 >= queries:
                p3 = none
            _add_products(more, p0, p1, p2, p3, g0, g1, g2, g3, width)
            d0, d1 = p0 * (d0 - broadcast_parts(a0)), p1 * (d1 - broadcast_parts(a1))
            d2, d3 = p2 * (d2 - broadcast_parts(a2)), p3 * (d3 - broadcast_parts(a3))
            _add_products(sums, d0, d1, d2, d3, q0, q1, q2, q3, width)
        _turn_back(dk, job.dk.row, first, count, width, sums, scale)
        _turn_back(dv, job.dv.row, first, count, width, more, splat(1.0))


@kernel(ATTENTION_BACKWARD)
def attention_backward(pointer):  # type: ignore[no-untyped-def]  # numba infers
    """Gradients: those of the queries with queries in the lanes, then those of keys and values with keys there."""
    jobs = carray(pointer, 1)
    job = jobs[0]
    padded = (job.queries + LANES - 1) // LANES * VECTOR_BYTES
    scratch = allocate((4 * job.width + 3) * VECTOR_BYTES + padded + _room(job, 4))
    if scratch == 0:
        return
    done = 0
    while True:
        item = take_item(jobs.ctypes.data)
        if item >= job.count:
            break
        if job.pairs:
            _differentiate(job, (2 * item, min(2 * item + 1, job.all_heads - 1)), (0, 1), aligned(scratch))
        else:
            _differentiate(job, (item,), (0,), aligned(scratch))
        done += 1
    finish(jobs.ctypes.data, done, scratch)
