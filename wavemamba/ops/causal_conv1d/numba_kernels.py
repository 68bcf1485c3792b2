"""The numba loops of the causal convolution: channels in vector lanes, steps one after the other.

A work item is a block of up to `BLOCK` channels of one batch element. Both passes read every input once from memory;
the `width` rows that a step sees are then in the first-level cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from wavemamba.ops.numba_simd import (
    LANES,
    VECTOR_BYTES,
    aligned,
    inline,
    keep_alive,
    load,
    load_matrix,
    load_some,
    load_vector,
    row_address,
    sigmoid,
    splat,
    step_row,
    store,
    store_matrix,
    store_some,
)

BLOCK = 128


class Sizes(NamedTuple):
    """What a kernel needs to know besides addresses."""

    length: int
    channels: int
    width: int
    blocks: int
    """Work items in a batch element."""
    order: int
    """Address of the int64 scan order, 0 where absent."""
    silu: int


@inline
def _find_taps(taps, sizes, x, initial, zeros, b, l):  # type: ignore[no-untyped-def]  # numba infers
    """Where the rows lie that step `l` sees, oldest first."""
    for t in range(sizes.width):
        step = l - sizes.width + 1 + t
        if step >= 0:
            taps[t] = row_address(x, b, step_row(sizes.order, step))
        elif initial != 0:
            taps[t] = initial + 4 * (b * (sizes.width - 1) + step + sizes.width - 1) * sizes.channels
        else:
            taps[t] = zeros


@inline
def _convolve(taps, weights, sizes, channel, j, count, start, spare):  # type: ignore[no-untyped-def]  # numba infers
    total = start
    for t in range(sizes.width):
        row = load_some(taps[t] + 4 * channel, count, spare)
        total = total + row * load(weights + 4 * (t * BLOCK + j))
    return total


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba ships no types
def forward(start, stop, sizes, x, weight, bias, initial, y):  # type: ignore[no-untyped-def]  # numba infers
    """Convolve the work items `start .. stop - 1`."""
    width = sizes.width
    buffer = np.empty((width + 1) * BLOCK + 2 * LANES, np.float32)
    weights = aligned(buffer)
    zeros = weights + 4 * width * BLOCK
    spare = zeros + 4 * BLOCK
    taps = np.empty(width, np.int64)
    for at in range(0, 4 * BLOCK, VECTOR_BYTES):
        store(zeros + at, splat(0.0))
    for item in range(start, stop):
        b = item // sizes.blocks
        first = item % sizes.blocks * BLOCK
        channels = min(BLOCK, sizes.channels - first)
        load_matrix(weight + 4 * first * width, weights, channels, width, BLOCK, 1.0)
        for l in range(sizes.length):
            _find_taps(taps, sizes, x, initial, zeros - 4 * first, b, l)
            out = row_address(y, b, step_row(sizes.order, l))
            for j in range(0, channels, LANES):
                channel, count = first + j, channels - j
                bias_e = load_vector(bias, channel, count, spare)
                total = _convolve(taps, weights, sizes, channel, j, count, bias_e, spare)
                if sizes.silu != 0:
                    total = total * sigmoid(total)
                store_some(out + 4 * channel, total, count, spare)
    keep_alive(buffer)


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba ships no types
def backward(start, stop, sizes, x, weight, bias, initial, dy, dx, dweight, dbias, dinitial):  # type: ignore[no-untyped-def]  # numba infers
    """Gradients of the work items `start .. stop - 1`; `dweight` (B, E, width), `dbias` (B, E): one batch element's share.

    From the last step on: a ring of `width` rows holds the gradients before the activation of the steps that the
    current row went into.
    """
    width = sizes.width
    buffer = np.empty((3 * width + 3) * BLOCK + 2 * LANES, np.float32)
    weights = aligned(buffer)
    dweights = weights + 4 * width * BLOCK
    dbiases = dweights + 4 * width * BLOCK
    ring = dbiases + 4 * BLOCK
    zeros = ring + 4 * width * BLOCK
    spare = zeros + 4 * BLOCK
    taps = np.empty(width, np.int64)
    for at in range(0, 4 * BLOCK, VECTOR_BYTES):
        store(zeros + at, splat(0.0))
    for item in range(start, stop):
        b = item // sizes.blocks
        first = item % sizes.blocks * BLOCK
        channels = min(BLOCK, sizes.channels - first)
        load_matrix(weight + 4 * first * width, weights, channels, width, BLOCK, 1.0)
        for at in range(0, 4 * (width + 1) * BLOCK, VECTOR_BYTES):
            store(dweights + at, splat(0.0))
        for at in range(0, 4 * width * BLOCK, VECTOR_BYTES):
            store(ring + at, splat(0.0))
        for l in range(sizes.length - 1, -width, -1):
            slot = ring + 4 * BLOCK * (l % width)
            if l >= 0:
                _find_taps(taps, sizes, x, initial, zeros - 4 * first, b, l)
                row = step_row(sizes.order, l)
                out = row_address(dx, b, row)
            else:
                row = 0
                out = dinitial + 4 * (b * (width - 1) + l + width - 1) * sizes.channels
            for j in range(0, channels, LANES):
                channel, count = first + j, channels - j
                gradient = splat(0.0)
                if l >= 0:
                    gradient = load_some(row_address(dy, b, row) + 4 * channel, count, spare)
                    if sizes.silu != 0:
                        bias_e = load_vector(bias, channel, count, spare)
                        total = _convolve(taps, weights, sizes, channel, j, count, bias_e, spare)
                        s = sigmoid(total)
                        gradient = gradient * (s + total * s * (splat(1.0) - s))
                    store(dbiases + 4 * j, load(dbiases + 4 * j) + gradient)
                    for t in range(width):
                        cell = dweights + 4 * (t * BLOCK + j)
                        store(cell, load(cell) + gradient * load_some(taps[t] + 4 * channel, count, spare))
                store(slot + 4 * j, gradient)
                total = splat(0.0)
                for i in range(width):
                    later = ring + 4 * (BLOCK * ((l + i) % width) + j)
                    total = total + load(later) * load(weights + 4 * ((width - 1 - i) * BLOCK + j))
                store_some(out + 4 * channel, total, count, spare)
        store_matrix(dweights, dweight + 4 * (b * sizes.channels + first) * width, channels, width, BLOCK)
        for j in range(0, channels, LANES):
            at = dbias + 4 * (b * sizes.channels + first + j)
            store_some(at, load(dbiases + 4 * j), channels - j, spare)
    keep_alive(buffer)
