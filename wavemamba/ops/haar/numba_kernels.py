"""The numba loop of the Haar packet map: one read and one write of the map, channels in vector lanes.

A work item is one coarse cell of `2**levels x 2**levels` pixels. Every level replaces, in place, the four vectors
whose pixels differ in one bit of the row and one of the column by their 2x2 Haar transform. The levels commute and each
is its own inverse, so that the same butterflies serve both directions, and the place of pixel `(r, q)` ends up holding
the band with the digits `r_i + 2 q_i`, `i` counting bits from the last.
"""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from wavemamba.ops.cpu.kernels import ROWS, Job, allocate, finish, kernel, take_item
from wavemamba.ops.cpu.memory import aligned, load_some, row_address, store_some
from wavemamba.ops.cpu.simd import (
    LANES,
    VECTOR_BYTES,
    get_float,
    get_int,
    inline,
    load,
    put_float,
    put_int,
    splat,
    store,
)

CHANNEL, INTERLEAVED, MOSAIC = range(3)

JOB = Job(
    levels=np.int64,
    height=np.int64,  # in cells
    width=np.int64,
    channels=np.int64,
    layout=np.int64,
    inverse=np.int64,
    scale=np.float64,
    x=ROWS,
    y=ROWS,
)


@inline
def _fill_bands(bands, levels):  # type: ignore[no-untyped-def]  # numba infers
    """The band that each pixel's place holds in the end."""
    side = 1 << levels
    for r in range(side):
        for q in range(side):
            band = 0
            for level in range(levels):
                band = 4 * band + (r >> level & 1) + 2 * (q >> level & 1)
            put_int(bands + 8 * (r * side + q), band)


@inline
def _butterflies(cell, levels):  # type: ignore[no-untyped-def]  # numba infers
    side = 1 << levels
    for level in range(levels):
        right, down = VECTOR_BYTES << level, VECTOR_BYTES * side << level
        for r in range(side):
            for q in range(side):
                if (r | q) >> level & 1 == 0:
                    at = cell + VECTOR_BYTES * (r * side + q)
                    a, b = load(at), load(at + right)
                    c, d = load(at + down), load(at + down + right)
                    top, bottom, left, other = a + b, c + d, a - b, c - d
                    store(at, top + bottom)
                    store(at + right, left + other)
                    store(at + down, top - bottom)
                    store(at + down + right, left - other)


@inline
def _band_row(mixed, bands, band_rows, p, channels, layout):  # type: ignore[no-untyped-def]  # numba infers
    """Where the band of a place is read or written."""
    return mixed + 4 * get_int(bands + 8 * p) * channels if layout == CHANNEL else get_int(band_rows + 8 * p)


@kernel(JOB)
def haar_map(pointer):  # type: ignore[no-untyped-def]  # numba infers
    """Transform pixels to bands, or with `inverse` bands to pixels; see `wavemamba.ops.haar` for the map."""
    jobs = carray(pointer, 1)
    job = jobs[0]
    levels, height, width, channels, layout = job.levels, job.height, job.width, job.channels, job.layout
    side = 1 << levels
    tokens = side * side
    factor = splat(job.scale / side)  # before the sums, so that none overflows where the result would not
    forward = job.inverse == 0
    scratch = allocate((tokens + 2) * VECTOR_BYTES + tokens * (3 * 8 + 4 * channels))
    if scratch == 0:
        return
    cell = aligned(scratch)
    spare = cell + tokens * VECTOR_BYTES
    bands = spare + VECTOR_BYTES  # of each place in the cell, as int64
    pixel_rows = bands + 8 * tokens
    band_rows = pixel_rows + 8 * tokens
    mixed = band_rows + 8 * tokens  # for the channel layout: all bands of the cell, one after the other
    _fill_bands(bands, levels)
    done = 0
    while True:
        item = take_item(jobs.ctypes.data)
        if item >= job.count:
            break
        w = item % width
        h = item // width % height
        b = item // (width * height)
        for p in range(tokens):
            corner = (h * side + p // side) * width * side + w * side
            pixel = corner + p % side
            band = get_int(bands + 8 * p)
            if layout == INTERLEAVED:
                token = (h * side + band // side) * width * side + w * side + band % side
            elif layout == MOSAIC:
                token = (band // side * height + h) * width * side + band % side * width + w
            else:
                token = pixel
            pixel_row = row_address(job.x, b, pixel) if forward else row_address(job.y, b, pixel)
            band_row = row_address(job.y, b, token) if forward else row_address(job.x, b, token)
            put_int(pixel_rows + 8 * p, pixel_row)
            put_int(band_rows + 8 * p, band_row)
        if layout == CHANNEL and not forward:
            for p in range(tokens):
                for c in range(channels):
                    put_float(mixed + 4 * (c * tokens + p), get_float(get_int(band_rows + 8 * p) + 4 * c))
        for j in range(0, channels, LANES):
            offset, count = 4 * j, channels - j
            for p in range(tokens):
                row = get_int(pixel_rows + 8 * p)
                if not forward:
                    row = _band_row(mixed, bands, band_rows, p, channels, layout)
                store(cell + p * VECTOR_BYTES, load_some(row + offset, count, spare) * factor)
            _butterflies(cell, levels)
            for p in range(tokens):
                row = get_int(pixel_rows + 8 * p)
                if forward:
                    row = _band_row(mixed, bands, band_rows, p, channels, layout)
                store_some(row + offset, load(cell + p * VECTOR_BYTES), count, spare)
        if layout == CHANNEL and forward:
            for p in range(tokens):
                for c in range(channels):
                    put_float(get_int(band_rows + 8 * p) + 4 * c, get_float(mixed + 4 * (c * tokens + p)))
        done += 1
    finish(jobs.ctypes.data, done, scratch)
