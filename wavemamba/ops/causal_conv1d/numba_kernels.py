"""The numba loops of the causal convolution: channels in vector lanes, steps one after the other.

A work item is a block of up to `BLOCK` channels of one batch element. Both passes read every input once from memory;
the `width` rows that a step sees are then in the first-level cache.
"""

from __future__ import annotations

import numpy as np

from wavemamba.ops.cpu.kernels import ROWS, Job, kernel
from wavemamba.ops.cpu.math import sigmoid
from wavemamba.ops.cpu.memory import (
    clear,
    fetch_row,
    fetch_row_before,
    load_channels,
    load_some,
    load_tile,
    load_vector,
    row_address,
    step_row,
    store_at,
    store_some,
    store_tile,
)
from wavemamba.ops.cpu.simd import LANES, VECTOR_BYTES, get_int, inline, load, put_int, splat, store

BLOCK = 128
_ROW = 4 * BLOCK  # bytes of one step in the scratch memory

_INPUTS = {"x": ROWS} | dict.fromkeys(
    ("length", "channels", "width", "blocks", "silu", "order", "first", "weight", "bias", "initial"), np.int64
)
FORWARD = Job(**_INPUTS, y=ROWS)
BACKWARD = Job(**_INPUTS, dy=ROWS, dx=ROWS, dweight=np.int64, dbias=np.int64, dinitial=np.int64)


@inline
def _place_of(job, item):  # type: ignore[no-untyped-def]  # numba infers
    """A work item's batch element, its first channel, how many it has, and where it is told, step by step, at which
    step the sequence begins."""
    b, first = item // job.blocks, item % job.blocks * BLOCK
    return b, first, min(BLOCK, job.channels - first), 0 if job.first == 0 else job.first + 8 * b * job.length


@inline
def _find_taps(taps, job, width, order, rows, stride, firsts, zeros, b, step):  # type: ignore[no-untyped-def]  # numba infers
    """Where the rows lie that a step sees, oldest first; zeros before the first step of its sequence."""
    before = width - 1
    limit = -before if firsts == 0 else get_int(firsts + 8 * step)
    for t in range(width):
        seen = step - before + t
        if seen < limit:
            tap = zeros
        elif seen >= 0:
            tap = rows + stride * step_row(order, seen)
        elif job.initial != 0:
            tap = job.initial + 4 * (b * before + seen + before) * job.channels
        else:
            tap = zeros
        put_int(taps + 8 * t, tap)


@inline
def _convolve(taps, weights, width, channel, size, j, count, bias, spare):  # type: ignore[no-untyped-def]  # numba infers
    total = bias
    for t in range(width):
        seen = load_channels(get_int(taps + 8 * t) + size * channel, size, count, spare)
        total = total + seen * load(weights + t * _ROW + 4 * j)
    return total


@kernel(FORWARD, lambda job: (job.width + 1) * _ROW + VECTOR_BYTES + 8 * job.width)
def forward(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """Convolve; addresses are 0 where there is no such tensor."""
    width, length, size = job.width, job.length, job.x.size
    weights = scratch
    zeros = weights + width * _ROW
    spare = zeros + _ROW
    taps = spare + VECTOR_BYTES
    clear(zeros, _ROW)
    b, first, channels, firsts = _place_of(job, item)
    order, rows, stride = job.order, row_address(job.x, b, 0), job.x.row
    load_tile(job.weight + 4 * first, job.channels, weights, channels, width, BLOCK, width, spare)
    for step in range(length):
        _find_taps(taps, job, width, order, rows, stride, firsts, zeros - size * first, b, step)
        row = step_row(job.order, step)
        for j in range(0, channels, LANES):
            channel, count = first + j, channels - j
            fetch_row(job.x, b, order, step, length, channel)
            bias = load_vector(job.bias, channel, count, spare)
            total = _convolve(taps, weights, width, channel, size, j, count, bias, spare)
            if job.silu != 0:
                total = total * sigmoid(total)
            store_at(job.y, b, row, channel, total, count, spare)


@kernel(BACKWARD, lambda job: (3 * job.width + 2) * _ROW + VECTOR_BYTES + 8 * job.width)
def backward(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """Gradients; `dweight` (B, width, E) and `dbias` (B, E) are one batch element's share each.

    From the last step on: a ring of `width` rows holds the gradients before the activation of the steps that the
    current row went into.
    """
    width, length = job.width, job.length
    weights = scratch
    dweights = weights + width * _ROW
    dbiases = dweights + width * _ROW
    ring = dbiases + _ROW
    zeros = ring + width * _ROW
    spare = zeros + _ROW
    taps = spare + VECTOR_BYTES
    clear(zeros, _ROW)
    b, first, channels, firsts = _place_of(job, item)
    order, rows, stride = job.order, row_address(job.x, b, 0), job.x.row
    load_tile(job.weight + 4 * first, job.channels, weights, channels, width, BLOCK, width, spare)
    clear(dweights, (2 * width + 1) * _ROW)
    for step in range(length - 1, -width, -1):
        slot = ring + _ROW * (step % width)
        if step >= 0:
            _find_taps(taps, job, width, order, rows, stride, firsts, zeros - 4 * first, b, step)
            row = step_row(job.order, step)
            out = row_address(job.dx, b, row)
        else:
            row = 0
            out = job.dinitial + 4 * (b * (width - 1) + step + width - 1) * job.channels
        for j in range(0, channels, LANES):
            offset, count = 4 * (first + j), channels - j
            gradient = splat(0.0)
            if step >= 0:
                fetch_row_before(job.x, b, order, step, first + j)
                fetch_row_before(job.dy, b, order, step, first + j)
                gradient = load_some(row_address(job.dy, b, row) + offset, count, spare)
                if job.silu != 0:
                    bias = load_vector(job.bias, first + j, count, spare)
                    total = _convolve(taps, weights, width, first + j, 4, j, count, bias, spare)
                    s = sigmoid(total)
                    gradient = gradient * (s + total * s * (splat(1.0) - s))
                store(dbiases + 4 * j, load(dbiases + 4 * j) + gradient)
                for t in range(width):
                    cell = dweights + t * _ROW + 4 * j
                    store(cell, load(cell) + gradient * load_some(get_int(taps + 8 * t) + offset, count, spare))
            store(slot + 4 * j, gradient)
            total = splat(0.0)
            for i in range(width):
                later = ring + _ROW * ((step + i) % width) + 4 * j
                total = total + load(later) * load(weights + _ROW * (width - 1 - i) + 4 * j)
            store_some(out + offset, total, count, spare)
        if firsts != 0 and step > 0 and get_int(firsts + 8 * step) == step:  # the steps before are of another sequence
            clear(ring, width * _ROW)
    dweight = job.dweight + 4 * (b * width * job.channels + first)
    store_tile(dweights, dweight, job.channels, channels, width, BLOCK, spare)
    store_tile(dbiases, job.dbias + 4 * (b * job.channels + first), job.channels, channels, 1, BLOCK, spare)
