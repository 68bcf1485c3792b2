# mypy: ignore-errors
# Triton's own language: no types, no unpacking inside tuples, no `and` between compile-time and run-time conditions.
"""The Triton kernel of the Haar packet map: one read and one write, whatever the levels and layout.

A program holds all pixels of one cell for a block of channels, splits (or merges) them in registers, and writes every
value to its place on the other side. In the "channel" layout neighbouring channels of a band belong to different
tokens: the block's channels are then numbered (channel of the token, token of the cell), and the compiler turns the
block in shared memory so that both sides are read and written in runs.
"""

from __future__ import annotations

import triton
import triton.language as tl

OPAQUE = ["length", "width"]
"""Arguments that must not choose another compilation."""


@triton.jit
def _split(v, BANDS: tl.constexpr, SIDE: tl.constexpr):
    """Split every band once, without the factor 1/2: values [band][row][column] of cells with a side of SIDE."""
    HALF: tl.constexpr = SIDE // 2
    out = ()
    for band in tl.static_range(BANDS):
        for digit in tl.static_range(4):
            for row in tl.static_range(HALF):
                for column in tl.static_range(HALF):
                    a = v[band * SIDE * SIDE + 2 * row * SIDE + 2 * column]
                    b = v[band * SIDE * SIDE + 2 * row * SIDE + 2 * column + 1]
                    c = v[band * SIDE * SIDE + (2 * row + 1) * SIDE + 2 * column]
                    d = v[band * SIDE * SIDE + (2 * row + 1) * SIDE + 2 * column + 1]
                    top = a - b if digit >= 2 else a + b
                    bottom = c - d if digit >= 2 else c + d
                    out = out + (top - bottom if digit % 2 == 1 else top + bottom,)
    return out


@triton.jit
def _merge(v, BANDS: tl.constexpr, SIDE: tl.constexpr):
    """Undo `_split`, again without the factor 1/2: BANDS bands of cells with a side of SIDE from 4 * BANDS."""
    HALF: tl.constexpr = SIDE // 2
    out = ()
    for band in tl.static_range(BANDS):
        for row in tl.static_range(SIDE):
            for column in tl.static_range(SIDE):
                ll = v[(band * 4 + 0) * HALF * HALF + row // 2 * HALF + column // 2]
                lh = v[(band * 4 + 1) * HALF * HALF + row // 2 * HALF + column // 2]
                hl = v[(band * 4 + 2) * HALF * HALF + row // 2 * HALF + column // 2]
                hh = v[(band * 4 + 3) * HALF * HALF + row // 2 * HALF + column // 2]
                low = ll - lh if row % 2 == 1 else ll + lh
                high = hl - hh if row % 2 == 1 else hl + hh
                out = out + (low - high if column % 2 == 1 else low + high,)
    return out


@triton.jit
def _map_place(
    k,
    h,
    w,
    c,
    turned,
    width,
    rows,
    channels,
    row_stride,
    SIDE: tl.constexpr,
    LAYOUT: tl.constexpr,
    TURNED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Where band `k` of a tile's channels lies on the map, as an offset."""
    if LAYOUT == "mosaic":
        token = (k // SIDE * (rows // SIDE) + h) * width + k % SIDE * (width // SIDE) + w
        channel = c
    elif LAYOUT == "interleaved":
        token = (h * SIDE + k // SIDE) * width + w * SIDE + k % SIDE
        channel = c
    elif TURNED:
        inside = tl.arange(0, SIDE * SIDE)[None, :]
        token = (h * SIDE + inside // SIDE) * width + w * SIDE + inside % SIDE
        channel = k * (channels // (SIDE * SIDE)) + turned
    else:
        flat = k * channels + c
        inside = flat % (SIDE * SIDE)
        token = (h * SIDE + inside // SIDE) * width + w * SIDE + inside % SIDE
        channel = flat // (SIDE * SIDE)
    row = tl.cast(token, tl.int64) if WIDE else token
    return row * row_stride + channel


@triton.jit(do_not_specialize=OPAQUE)
def haar_map(
    x,
    y,
    factor,
    length,
    width,
    channels,
    x_b,
    x_l,
    LEVELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    INVERSE: tl.constexpr,
    TURNED: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Image to map, or with INVERSE map to image: x (B, L, C) of strides (x_b, x_l, 1), y (B, L, C) contiguous."""
    SIDE: tl.constexpr = 1 << LEVELS
    RUN: tl.constexpr = SIDE * SIDE if TURNED else 1
    blocks = tl.cdiv(channels, BLOCK)
    program = tl.program_id(0)
    block = program % blocks
    rows = length // width
    cells_wide = width // SIDE
    cells = rows // SIDE * cells_wide
    cell = program // blocks % cells
    batch = (program // blocks // cells).to(tl.int64)
    h = cell // cells_wide
    w = cell % cells_wide
    turned = block * (BLOCK // RUN) + tl.arange(0, BLOCK // RUN)[:, None]
    c = turned * RUN + tl.arange(0, RUN)[None, :]
    mask = c < channels
    x += batch * x_b
    y += batch * length * channels
    corner = h * SIDE * width + w * SIDE
    if WIDE:
        corner = corner.to(tl.int64)

    v = ()
    if INVERSE:
        for k in tl.static_range(SIDE * SIDE):
            place = _map_place(k, h, w, c, turned, width, rows, channels, x_l, SIDE, LAYOUT, TURNED, WIDE)
            v = v + (tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * factor,)
        for level in tl.static_range(LEVELS):
            v = _merge(v, 1 << (2 * (LEVELS - 1 - level)), 2 << level)
        for i in tl.static_range(SIDE * SIDE):
            place = (corner + (i // SIDE * width + i % SIDE)) * channels + c
            tl.store(y + place, v[i].to(y.dtype.element_ty), mask=mask)
    else:
        for i in tl.static_range(SIDE * SIDE):
            place = (corner + (i // SIDE * width + i % SIDE)) * x_l + c
            v = v + (tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * factor,)
        for level in tl.static_range(LEVELS):
            v = _split(v, 1 << (2 * level), SIDE >> level)
        for k in tl.static_range(SIDE * SIDE):
            place = _map_place(k, h, w, c, turned, width, rows, channels, channels, SIDE, LAYOUT, TURNED, WIDE)
            tl.store(y + place, v[k].to(y.dtype.element_ty), mask=mask)
