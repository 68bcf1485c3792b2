"""How the numba kernels reach memory: rows of strided tensors, parts of vectors, tiles, scratch."""

from __future__ import annotations

from wavemamba.ops.cpu.simd import (
    LANES,
    SIDE,
    VECTOR_BYTES,
    called,
    copy_half,
    fetch,
    get_float,
    get_int,
    inline,
    load,
    load_narrow,
    put_float,
    splat,
    store,
    store_narrow,
    turn_block,
)

NARROW = 2
"""Bytes of a bfloat16, beside the four of a float32."""


@inline
def load_some(address, count, spare):  # type: ignore[no-untyped-def]  # numba infers
    """The first `count` lanes from an address, zeros in the others; `spare` is room for one vector."""
    if count >= LANES:
        return load(address)
    store(spare, splat(0.0))
    for i in range(count):
        put_float(spare + 4 * i, get_float(address + 4 * i))
    return load(spare)


@inline
def store_some(address, value, count, spare):  # type: ignore[no-untyped-def]  # numba infers
    """Write the first `count` lanes to an address; `spare` is room for one vector."""
    if count >= LANES:
        store(address, value)
    else:
        store(spare, value)
        for i in range(count):
            put_float(address + 4 * i, get_float(spare + 4 * i))


@inline
def load_channels(address, size, count, spare):  # type: ignore[no-untyped-def]  # numba infers
    """`load_some` of numbers of `size` bytes: float32, or bfloat16."""
    if size != NARROW:
        return load_some(address, count, spare)
    if count >= LANES:
        return load_narrow(address)
    store(spare, splat(0.0))
    for i in range(count):
        copy_half(address + NARROW * i, spare + NARROW * i)
    return load_narrow(spare)


@inline
def store_channels(address, size, value, count, spare):  # type: ignore[no-untyped-def]  # numba infers
    """`store_some` of numbers of `size` bytes: float32, or bfloat16."""
    if size != NARROW:
        store_some(address, value, count, spare)
    elif count >= LANES:
        store_narrow(address, value)
    else:
        store_narrow(spare, value)
        for i in range(count):
            copy_half(spare + NARROW * i, address + NARROW * i)


@inline
def row_address(rows, b, row):  # type: ignore[no-untyped-def]  # numba infers
    """Where a row of batch element `b` begins."""
    return rows.address + b * rows.batch + row * rows.row


@inline
def load_at(rows, b, row, channel, count, spare):  # type: ignore[no-untyped-def]  # numba infers
    """`LANES` channels of a row from `channel` on, zeros from `count` on."""
    return load_channels(row_address(rows, b, row) + rows.size * channel, rows.size, count, spare)


@inline
def store_at(rows, b, row, channel, value, count, spare):  # type: ignore[no-untyped-def]  # numba infers
    """Write the first `count` lanes to a row from `channel` on."""
    store_channels(row_address(rows, b, row) + rows.size * channel, rows.size, value, count, spare)


@inline
def step_row(order, step):  # type: ignore[no-untyped-def]  # numba infers
    """The row that a step visits; `order` is the address of an int64 permutation, or 0."""
    return step if order == 0 else get_int(order + 8 * step)


_AHEAD = 8
"""Steps between asking for a row and reading it."""


@inline
def fetch_row(rows, b, order, step, length, channel):  # type: ignore[no-untyped-def]  # numba infers
    """Ask for part of the row that comes `_AHEAD` steps later: in most orders no processor guesses which one it is."""
    if step + _AHEAD < length:
        fetch(row_address(rows, b, step_row(order, step + _AHEAD)) + rows.size * channel)


@inline
def fetch_row_before(rows, b, order, step, channel):  # type: ignore[no-untyped-def]  # numba infers
    """The same for steps that are taken from the last to the first."""
    if step >= _AHEAD:
        fetch(row_address(rows, b, step_row(order, step - _AHEAD)) + rows.size * channel)


@inline
def aligned(address):  # type: ignore[no-untyped-def]  # numba infers
    """The next multiple of a cache line."""
    return (address + 63) & ~63


@inline
def clear(address, size):  # type: ignore[no-untyped-def]  # numba infers
    """Zeros in so many bytes, whole vectors of them."""
    for at in range(address, address + size, VECTOR_BYTES):
        store(at, splat(0.0))


@inline
def load_tile(source, across, target, count, height, block, padded, spare):  # type: ignore[no-untyped-def]  # numba infers
    """`height` rows of `count` channels, `across` channels apart, to a (padded, block) tile; absent ones are 0."""
    clear(target, 4 * padded * block)
    if source != 0:
        for n in range(height):
            for j in range(0, count, LANES):
                store(target + 4 * (n * block + j), load_some(source + 4 * (n * across + j), count - j, spare))


@inline
def store_tile(source, target, across, count, height, block, spare):  # type: ignore[no-untyped-def]  # numba infers
    """The first `height` rows of a (..., block) tile to rows of `count` channels, `across` channels apart."""
    if target != 0:
        for n in range(height):
            for j in range(0, count, LANES):
                store_some(target + 4 * (n * across + j), load(source + 4 * (n * block + j)), count - j, spare)


@inline
def turn_some(source, across, target, target_across, height, width):  # type: ignore[no-untyped-def]  # numba infers
    """Up to `SIDE` rows of up to `SIDE` numbers, `across` bytes apart, to columns, `target_across` bytes apart."""
    if height >= SIDE and width >= SIDE:
        turn_block(source, across, target, target_across)
    else:
        rows, columns = min(SIDE, height), min(SIDE, width)
        for i in range(rows):
            for c in range(columns):
                put_float(target + c * target_across + 4 * i, get_float(source + i * across + 4 * c))


@called
def turn(source, across, target, target_across, height, width):  # type: ignore[no-untyped-def]  # numba infers
    """`height` rows of `width` numbers, `across` bytes apart, to columns, `target_across` bytes apart, by blocks."""
    for c in range(0, width, SIDE):
        for i in range(0, height, SIDE):
            at, to = source + i * across + 4 * c, target + c * target_across + 4 * i
            turn_some(at, across, to, target_across, height - i, width - c)


@inline
def load_vector(address, channel, count, spare):  # type: ignore[no-untyped-def]  # numba infers
    """`LANES` entries of an (E,) vector, zeros where it is absent."""
    if address == 0:
        return splat(0.0)
    return load_some(address + 4 * channel, count, spare)
