"""The numba loops of attention between narrow heads: queries in vector lanes, or keys, never the channels of a head.

A work item is one head of one sample, or two of them, each in half the lanes, where those hold all queries and all
keys. Lanes hold up to `LANES` queries for the scores, the result and the gradient of the queries, and `LANES` keys for
those of keys and values. Of the others four are taken together, so that what is loaded serves four times. Nothing is
summed across lanes. Exponentials have base 2, which the scale of the scores takes in.
"""

from __future__ import annotations

import math

import numpy as np

from wavemamba.ops.cpu.kernels import ROWS, Job, kernel
from wavemamba.ops.cpu.math import LOG2_E, exp2_product
from wavemamba.ops.cpu.memory import (
    NARROW,
    clear,
    load_channels,
    row_address,
    store_some,
    turn,
)
from wavemamba.ops.cpu.simd import (
    LANES,
    VECTOR_BYTES,
    broadcast_halves,
    called,
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


@inline
def _head(rows, heads, width, head):  # type: ignore[no-untyped-def]  # numba infers
    """Where a head begins, counted over all samples."""
    return row_address(rows, head // heads, 0) + head % heads * width * rows.size


@inline
def _place(job, rows, head, twin):  # type: ignore[no-untyped-def]  # numba infers
    """Where a head begins, how far after it its twin, and how far apart their rows are."""
    begin, other = _head(rows, job.heads, job.width, head), head if twin is None else twin
    return begin, _head(rows, job.heads, job.width, other) - begin, rows.row


@inline
def _numbers(address, queries, head, twin):  # type: ignore[no-untyped-def]  # numba infers
    """The same of what has one number a query."""
    other = head if twin is None else twin
    return address + 4 * queries * head, 4 * queries * (other - head), 4


@called
def _widen(begin, row, size, count, width, target):  # type: ignore[no-untyped-def]  # numba infers
    """Copies of a head's bfloat16 rows in float32; the target begins with room for one vector."""
    for i in range(count):
        source, to = begin + i * row, target + VECTOR_BYTES + 4 * width * i
        for c in range(0, width, LANES):
            store_some(to + 4 * c, load_channels(source + NARROW * c, size, width - c, target), width - c, target)


@called
def _taken(job, rows, count, head, twin, copies):  # type: ignore[no-untyped-def]  # numba infers
    """`_place` of rows of float32: those that there are, or copies."""
    begin, apart, row = _place(job, rows, head, twin)
    if rows.size != NARROW:
        return begin, apart, row
    room = VECTOR_BYTES + 4 * job.width * count
    _widen(begin, row, rows.size, count, job.width, copies)
    if twin is not None:
        _widen(begin + apart, row, rows.size, count, job.width, copies + room)
    return copies + VECTOR_BYTES, room, 4 * job.width


@called
def _turn(place, twin, first, count, width, target, factor):  # type: ignore[no-untyped-def]  # numba infers
    """Rows of each head to its lanes, `width` vectors of them, times a factor; zeros in the lanes of no row."""
    begin, apart, row = place
    clear(target, width * VECTOR_BYTES)
    turn(begin + first * row, row, target, VECTOR_BYTES, count, width)
    if twin is not None:
        turn(begin + apart + first * row, row, target + _HALF_BYTES, VECTOR_BYTES, count, width)
    for c in range(width):
        store(target + c * VECTOR_BYTES, load(target + c * VECTOR_BYTES) * splat(factor))


@called
def _turn_back(place, twin, first, count, width, source, factors):  # type: ignore[no-untyped-def]  # numba infers
    """Lanes to rows of their heads, each times its factor."""
    begin, apart, row = place
    for c in range(width):
        store(source + c * VECTOR_BYTES, load(source + c * VECTOR_BYTES) * factors)
    turn(source, VECTOR_BYTES, begin + first * row, row, width, count)
    if twin is not None:
        turn(source + _HALF_BYTES, VECTOR_BYTES, begin + apart + first * row, row, width, count)


@called
def _copy(source, target, count):  # type: ignore[no-untyped-def]  # numba infers
    for i in range(count):
        put_float(target + 4 * i, get_float(source + 4 * i))


@called
def _spread(place, twin, first, count, target):  # type: ignore[no-untyped-def]  # numba infers
    """One number a row of each head to its lanes; the lanes of no row keep what they have."""
    begin, apart, row = place
    _copy(begin + first * row, target, count)
    if twin is not None:
        _copy(begin + apart + first * row, target + _HALF_BYTES, count)
    return load(target)


@called
def _gather(place, twin, first, count, value, spare):  # type: ignore[no-untyped-def]  # numba infers
    """The way back."""
    begin, apart, row = place
    store(spare, value)
    _copy(spare, begin + first * row, count)
    if twin is not None:
        _copy(spare + _HALF_BYTES, begin + apart + first * row, count)


@inline
def _four(place, first, last):  # type: ignore[no-untyped-def]  # numba infers
    """Where four rows of a head begin; beyond the last one, where that begins."""
    begin, _, row = place
    return (
        begin + first * row,
        begin + min(first + 1, last) * row,
        begin + min(first + 2, last) * row,
        begin + min(first + 3, last) * row,
    )


@inline
def _products(turned, a, b, c, d, apart, twin, width):  # type: ignore[no-untyped-def]  # numba infers
    """The products of the lanes with four rows."""
    s, t, u, v = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    for i in range(width):
        lanes = load(turned + i * VECTOR_BYTES)
        s = s + lanes * broadcast_halves(a + 4 * i, apart, twin)
        t = t + lanes * broadcast_halves(b + 4 * i, apart, twin)
        u = u + lanes * broadcast_halves(c + 4 * i, apart, twin)
        v = v + lanes * broadcast_halves(d + 4 * i, apart, twin)
    return s, t, u, v


@inline
def _add_products(sums, p, q, r, s, a, b, c, d, apart, twin, width):  # type: ignore[no-untyped-def]  # numba infers
    """Add four rows to the lanes' sums, each times what it has in a lane."""
    for i in range(width):
        total = load(sums + i * VECTOR_BYTES) + p * broadcast_halves(a + 4 * i, apart, twin)
        total = total + q * broadcast_halves(b + 4 * i, apart, twin)
        total = total + r * broadcast_halves(c + 4 * i, apart, twin)
        store(sums + i * VECTOR_BYTES, total + s * broadcast_halves(d + 4 * i, apart, twin))


@inline
def _power(x):  # type: ignore[no-untyped-def]  # numba infers
    return exp2_product(x, splat(1.0))


@inline
def _padded(count):  # type: ignore[no-untyped-def]  # numba infers
    """Bytes of so many numbers in whole vectors."""
    return (count + LANES - 1) // LANES * VECTOR_BYTES


@inline
def _room(job, copies):  # type: ignore[no-untyped-def]  # numba infers
    """Bytes of so many copies of an item's rows, none where those are float32."""
    heads = 2 if job.pairs else 1
    return copies * heads * (VECTOR_BYTES + 4 * job.width * max(job.queries, job.keys)) if job.q.size == NARROW else 0


@called
def _attend(job, head, twin, scratch):  # type: ignore[no-untyped-def]  # numba infers
    queries, keys, width = job.queries, job.keys, job.width
    turned = scratch
    sums = turned + width * VECTOR_BYTES
    scores = sums + width * VECTOR_BYTES
    factor = job.scale * LOG2_E
    least = splat(-math.inf)
    copies = scores + ((keys + 3) // 4 * 4 + 1) * VECTOR_BYTES
    room = _room(job, 1)
    q = _taken(job, job.q, queries, head, twin, copies)
    k = _taken(job, job.k, keys, head, twin, copies + room)
    v = _taken(job, job.v, keys, head, twin, copies + 2 * room)
    y = _place(job, job.y, head, twin)
    largest, shares = _numbers(job.most, queries, head, twin), _numbers(job.share, queries, head, twin)
    for first in range(0, queries, LANES):
        count = min(LANES, queries - first)
        _turn(q, twin, first, count, width, turned, factor)
        most = least
        for j in range(0, keys, 4):
            k0, k1, k2, k3 = _four(k, j, keys - 1)
            s0, s1, s2, s3 = _products(turned, k0, k1, k2, k3, k[1], twin, width)
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
            v0, v1, v2, v3 = _four(v, j, keys - 1)
            _add_products(sums, p0, p1, p2, p3, v0, v1, v2, v3, v[1], twin, width)
        share = splat(1.0) / total
        _turn_back(y, twin, first, count, width, sums, share)
        _gather(largest, twin, first, count, most, turned)
        _gather(shares, twin, first, count, share, turned)


@kernel(ATTENTION, lambda job: (2 * job.width + (job.keys + 3) // 4 * 4 + 1) * VECTOR_BYTES + _room(job, 3))
def attention(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """`most` and `share` (B, heads, L) get, for each query, its largest score, and one by the sum of its powers."""
    if job.pairs:
        _attend(job, 2 * item, min(2 * item + 1, job.all_heads - 1), scratch)
    else:
        _attend(job, item, None, scratch)


@called
def _differentiate(job, head, twin, scratch):  # type: ignore[no-untyped-def]  # numba infers
    queries, keys, width = job.queries, job.keys, job.width
    turned = scratch
    other = turned + width * VECTOR_BYTES
    sums = other + width * VECTOR_BYTES
    more = sums + width * VECTOR_BYTES
    spare = more + width * VECTOR_BYTES
    means = spare + VECTOR_BYTES  # of every query: what its powers' gradients are on average
    factor, scale, none = job.scale * LOG2_E, splat(job.scale), splat(0.0)
    copies = means + _padded(queries)
    room = _room(job, 1)
    q = _taken(job, job.q, queries, head, twin, copies)
    k = _taken(job, job.k, keys, head, twin, copies + room)
    v = _taken(job, job.v, keys, head, twin, copies + 2 * room)
    g = _taken(job, job.g, queries, head, twin, copies + 3 * room)
    y, dq = _place(job, job.y, head, twin), _place(job, job.dq, head, twin)
    dk, dv = _place(job, job.dk, head, twin), _place(job, job.dv, head, twin)
    largest, shares = _numbers(job.most, queries, head, twin), _numbers(job.share, queries, head, twin)
    store(spare, none)
    for first in range(0, queries, LANES):
        count = min(LANES, queries - first)
        _turn(g, twin, first, count, width, other, 1.0)
        _turn(y, twin, first, count, width, turned, 1.0)
        mean = none
        for c in range(width):
            mean = mean + load(other + c * VECTOR_BYTES) * load(turned + c * VECTOR_BYTES)
        store(means + 4 * first, mean)
        _turn(q, twin, first, count, width, turned, factor)
        most = _spread(largest, twin, first, count, spare)
        share = _spread(shares, twin, first, count, spare)
        clear(sums, width * VECTOR_BYTES)
        for j in range(0, keys, 4):
            k0, k1, k2, k3 = _four(k, j, keys - 1)
            v0, v1, v2, v3 = _four(v, j, keys - 1)
            s0, s1, s2, s3 = _products(turned, k0, k1, k2, k3, k[1], twin, width)
            d0, d1, d2, d3 = _products(other, v0, v1, v2, v3, v[1], twin, width)
            d0, d1 = _power(s0 - most) * share * (d0 - mean), _power(s1 - most) * share * (d1 - mean)
            d2, d3 = _power(s2 - most) * share * (d2 - mean), _power(s3 - most) * share * (d3 - mean)
            if j + 1 >= keys:
                d1 = none
            if j + 2 >= keys:
                d2 = none
            if j + 3 >= keys:
                d3 = none
            _add_products(sums, d0, d1, d2, d3, k0, k1, k2, k3, k[1], twin, width)
        _turn_back(dq, twin, first, count, width, sums, scale)
    averages = means, _HALF_BYTES, 4
    for first in range(0, keys, LANES):
        count = min(LANES, keys - first)
        _turn(k, twin, first, count, width, turned, factor)
        _turn(v, twin, first, count, width, other, 1.0)
        clear(sums, width * VECTOR_BYTES)
        clear(more, width * VECTOR_BYTES)
        for j in range(0, queries, 4):
            q0, q1, q2, q3 = _four(q, j, queries - 1)
            g0, g1, g2, g3 = _four(g, j, queries - 1)
            m0, m1, m2, m3 = _four(largest, j, queries - 1)
            r0, r1, r2, r3 = _four(shares, j, queries - 1)
            a0, a1, a2, a3 = _four(averages, j, queries - 1)
            s0, s1, s2, s3 = _products(turned, q0, q1, q2, q3, q[1], twin, width)
            d0, d1, d2, d3 = _products(other, g0, g1, g2, g3, g[1], twin, width)
            p0 = _power(s0 - broadcast_halves(m0, largest[1], twin)) * broadcast_halves(r0, shares[1], twin)
            p1 = _power(s1 - broadcast_halves(m1, largest[1], twin)) * broadcast_halves(r1, shares[1], twin)
            p2 = _power(s2 - broadcast_halves(m2, largest[1], twin)) * broadcast_halves(r2, shares[1], twin)
            p3 = _power(s3 - broadcast_halves(m3, largest[1], twin)) * broadcast_halves(r3, shares[1], twin)
            if j + 1 >= queries:
                p1 = none
            if j + 2 >= queries:
                p2 = none
            if j + 3 >= queries:
                p3 = none
            _add_products(more, p0, p1, p2, p3, g0, g1, g2, g3, g[1], twin, width)
            d0, d1 = (
                p0 * (d0 - broadcast_halves(a0, averages[1], twin)),
                p1 * (d1 - broadcast_halves(a1, averages[1], twin)),
            )
            d2, d3 = (
                p2 * (d2 - broadcast_halves(a2, averages[1], twin)),
                p3 * (d3 - broadcast_halves(a3, averages[1], twin)),
            )
            _add_products(sums, d0, d1, d2, d3, q0, q1, q2, q3, q[1], twin, width)
        _turn_back(dk, twin, first, count, width, sums, scale)
        _turn_back(dv, twin, first, count, width, more, splat(1.0))


@kernel(ATTENTION_BACKWARD, lambda job: (4 * job.width + 1) * VECTOR_BYTES + _padded(job.queries) + _room(job, 4))
def attention_backward(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """Gradients: those of the queries with queries in the lanes, then those of keys and values with keys there."""
    if job.pairs:
        _differentiate(job, 2 * item, min(2 * item + 1, job.all_heads - 1), scratch)
    else:
        _differentiate(job, item, None, scratch)
