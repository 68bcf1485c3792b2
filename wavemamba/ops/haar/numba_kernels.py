"""The numba loop of the Haar packet map: one read and one write of the map, channels in vector lanes.

A work item is a run of coarse cells of `2**levels x 2**levels` pixels. Every level replaces, in place, the four vectors
whose pixels differ in one bit of the row and one of the column by their 2x2 Haar transform. The levels commute and each
is its own inverse, so that the same butterflies serve both directions, and the place of pixel `(r, q)` ends up holding
the band with the digits `r_i + 2 q_i`, `i` counting bits from the last.
"""

from __future__ import annotations

import numpy as np

from wavemamba.ops.cpu.kernels import ROWS, Job, kernel
from wavemamba.ops.cpu.memory import (
    load_channels,
    load_some,
    row_address,
    store_channels,
    store_some,
    turn,
)
from wavemamba.ops.cpu.simd import (
    LANES,
    VECTOR_BYTES,
    get_int,
    inline,
    load,
    put_int,
    splat,
    store,
)

CHANNEL, INTERLEAVED, MOSAIC = range(3)

JOB = Job(
    cells=np.int64,
    run=np.int64,
    levels=np.int64,
    height=np.int64,  # in cells
    width=np.int64,
    channels=np.int64,
    layout=np.int64,
    inverse=np.int64,
    scale=np.float64,
    x=ROWS,
    y=ROWS,  # of the same size
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


def _scratch(job):  # type: ignore[no-untyped-def]  # numba infers
    tokens = 1 << 2 * job.levels
    return (tokens + 1) * VECTOR_BYTES + tokens * (3 * 8 + 2 * 4 * job.channels)


@kernel(JOB, _scratch)
def haar_map(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """Transform pixels to bands, or with `inverse` bands to pixels; see `wavemamba.ops.haar` for the map.

    In the channel layout the bands of a cell, one after the other, are a matrix of a row a channel of its tokens.
    """
    levels, height, width, channels, layout = job.levels, job.height, job.width, job.channels, job.layout
    side, size = 1 << levels, job.x.size
    tokens = side * side
    factor = splat(job.scale / side)  # before the sums, so that none overflows where the result would not
    forward, by_channel = job.inverse == 0, layout == CHANNEL
    cell = scratch
    spare = cell + tokens * VECTOR_BYTES
    bands = spare + VECTOR_BYTES  # of each place in the cell, as int64
    pixel_rows = bands + 8 * tokens
    band_rows = pixel_rows + 8 * tokens
    mixed = band_rows + 8 * tokens  # for the channel layout: all bands of the cell, one after the other
    turned = mixed + 4 * tokens * channels  # and its tokens
    _fill_bands(bands, levels)
    for place in range(item * job.run, min((item + 1) * job.run, job.cells)):
        w = place % width
        h = place // width % height
        b = place // (width * height)
        for p in range(tokens):
            corner = (h * side + (p >> levels)) * width * side + w * side
            pixel = corner + (p & side - 1)
            band = get_int(bands + 8 * p)
            if layout == INTERLEAVED:
                token = (h * side + (band >> levels)) * width * side + w * side + (band & side - 1)
            elif layout == MOSAIC:
                token = ((band >> levels) * height + h) * width * side + (band & side - 1) * width + w
            else:
                token = pixel
            pixel_row = row_address(job.x, b, pixel) if forward else row_address(job.y, b, pixel)
            band_row = row_address(job.y, b, token) if forward else row_address(job.x, b, token)
            put_int(pixel_rows + 8 * p, pixel_row)
            put_int(band_rows + 8 * p, band_row)
        if by_channel and not forward:
            for p in range(tokens):
                source, target = get_int(band_rows + 8 * p), turned + 4 * p * channels
                for j in range(0, channels, LANES):
                    value = load_channels(source + size * j, size, channels - j, spare)
                    store_some(target + 4 * j, value, channels - j, spare)
            turn(turned, 4 * channels, mixed, 4 * tokens, tokens, channels)
        for j in range(0, channels, LANES):
            count = channels - j
            for p in range(tokens):
                if forward:
                    value = load_channels(get_int(pixel_rows + 8 * p) + size * j, size, count, spare)
                elif by_channel:
                    value = load_some(mixed + 4 * (get_int(bands + 8 * p) * channels + j), count, spare)
                else:
                    value = load_channels(get_int(band_rows + 8 * p) + size * j, size, count, spare)
                store(cell + p * VECTOR_BYTES, value * factor)
            _butterflies(cell, levels)
            for p in range(tokens):
                value = load(cell + p * VECTOR_BYTES)
                if not forward:
                    store_channels(get_int(pixel_rows + 8 * p) + size * j, size, value, count, spare)
                elif by_channel:
                    store_some(mixed + 4 * (get_int(bands + 8 * p) * channels + j), value, count, spare)
                else:
                    store_channels(get_int(band_rows + 8 * p) + size * j, size, value, count, spare)
        if by_channel and forward:
            turn(mixed, 4 * tokens, turned, 4 * channels, channels, tokens)
            for p in range(tokens):
                source, target = turned + 4 * p * channels, get_int(band_rows + 8 * p)
                for j in range(0, channels, LANES):
                    value = load_some(source + 4 * j, channels - j, spare)
                    store_channels(target + size * j, size, value, channels - j, spare)
