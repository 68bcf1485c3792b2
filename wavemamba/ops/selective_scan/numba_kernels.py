"""The numba loops of the selective scan: channels in vector lanes, states one after the other, steps innermost.

A work item is a block of up to `BLOCK` channels of one batch element and group. It walks the sequence in chunks of
`CHUNK` steps; inside a chunk, `LANES` channels at a time, the state of one n stays in a register over all steps, and
what the steps share (step size, input, output) stays in the first-level cache over all n. The forward pass keeps the
state at the start of every chunk; the backward pass recomputes the others from it, chunk by chunk from the end.

Items do not depend on each other nor on the number of threads, and what they sum over channels or batch they write to
places of their own, so that results are reproducible.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from wavemamba.ops.numba_simd import (
    LANES,
    LN_2,
    LOG2_E,
    VECTOR_BYTES,
    aligned,
    broadcast,
    exp2_product,
    get_float,
    inline,
    keep_alive,
    load,
    load_matrix,
    load_some,
    load_vector,
    put_float,
    row_address,
    sigmoid,
    softplus,
    splat,
    step_row,
    store,
    store_matrix,
    store_some,
    sum_lanes,
)

CHUNK = 32
BLOCK = 128
_ROW = CHUNK * VECTOR_BYTES  # one vector a step


class Sizes(NamedTuple):
    """What a kernel needs to know besides addresses."""

    batches: int
    length: int
    width: int
    """Channels of one group."""
    groups: int
    states: int
    block: int
    """Channels of a work item, a multiple of LANES."""
    blocks: int
    """Work items in a group."""
    chunks: int
    order: int
    """Address of the int64 scan order, 0 where absent."""
    softplus: int


@inline
def _load_projections(source, target, sizes, b, g, first, steps):  # type: ignore[no-untyped-def]  # numba infers
    """One group of B or C, contiguous (B, L, G, N), for the steps of a chunk to an (N, CHUNK) tile."""
    for k in range(steps):
        l = step_row(sizes.order, first + k)
        row = source + 4 * ((b * sizes.length + l) * sizes.groups + g) * sizes.states
        for n in range(sizes.states):
            put_float(target + 4 * (n * CHUNK + k), get_float(row + 4 * n))


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba ships no types
def forward(start, stop, sizes, u, delta, z, A, B, C, D, bias, initial, y, last, checkpoints):  # type: ignore[no-untyped-def]  # numba infers
    """Scan the work items `start .. stop - 1`; addresses as in `Rows`, `checkpoints` 0 where none are kept."""
    N, block = sizes.states, sizes.block
    tile = 4 * N * block
    buffer = np.empty((2 * tile + 8 * N * CHUNK + 3 * _ROW + 2 * VECTOR_BYTES) // 4 + 16, np.float32)
    decays = aligned(buffer)
    state = decays + tile
    B_tile = state + tile
    C_tile = B_tile + 4 * N * CHUNK
    d_row = (C_tile + 4 * N * CHUNK + 63) & ~63
    x_row = d_row + _ROW
    y_row = x_row + _ROW
    spare = y_row + _ROW
    for item in range(start, stop):
        s = item % sizes.blocks
        g = item // sizes.blocks % sizes.groups
        b = item // (sizes.blocks * sizes.groups)
        channels = min(block, sizes.width - s * block)
        first_channel = g * sizes.width + s * block
        load_matrix(A + 4 * first_channel * N, decays, channels, N, block, LOG2_E)
        state_offset = 4 * (b * sizes.groups * sizes.width + first_channel) * N
        load_matrix(0 if initial == 0 else initial + state_offset, state, channels, N, block, 1.0)
        for chunk in range(sizes.chunks):
            first = chunk * CHUNK
            steps = min(CHUNK, sizes.length - first)
            _load_projections(B, B_tile, sizes, b, g, first, steps)
            _load_projections(C, C_tile, sizes, b, g, first, steps)
            for j in range(0, channels, LANES):
                channel = first_channel + j
                count = channels - j
                bias_e = load_vector(bias, channel, count, spare)
                D_e = load_vector(D, channel, count, spare)
                for k in range(steps):
                    l = step_row(sizes.order, first + k)
                    at = k * VECTOR_BYTES
                    d = load_some(row_address(delta, b, l) + 4 * channel, count, spare) + bias_e
                    if sizes.softplus != 0:
                        d = softplus(d)
                    x = load_some(row_address(u, b, l) + 4 * channel, count, spare)
                    store(d_row + at, d)
                    store(x_row + at, d * x)
                    store(y_row + at, D_e * x)
                for n in range(N):
                    cell = 4 * (n * block + j)
                    rate = load(decays + cell)
                    h = load(state + cell)
                    if checkpoints != 0:
                        store(checkpoints + (item * sizes.chunks + chunk) * tile + cell, h)
                    for k in range(steps):
                        at = k * VECTOR_BYTES
                        a = exp2_product(load(d_row + at), rate)
                        h = a * h + load(x_row + at) * broadcast(B_tile + 4 * (n * CHUNK + k))
                        store(y_row + at, load(y_row + at) + h * broadcast(C_tile + 4 * (n * CHUNK + k)))
                    store(state + cell, h)
                for k in range(steps):
                    l = step_row(sizes.order, first + k)
                    out = load(y_row + k * VECTOR_BYTES)
                    if z.address != 0:
                        gate = load_some(row_address(z, b, l) + 4 * channel, count, spare)
                        out = out * (gate * sigmoid(gate))
                    store_some(row_address(y, b, l) + 4 * channel, out, count, spare)
        store_matrix(state, last + state_offset, channels, N, block)
    keep_alive(buffer)


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba ships no types
def backward(  # type: ignore[no-untyped-def]  # numba infers
    start, stop, sizes, u, delta, z, A, B, C, D, bias, checkpoints, dy, dlast,
    du, ddelta, dz, dA, dB, dC, dD, dbias, dinitial,
):  # fmt: skip
    """Gradients of the work items `start .. stop - 1`.

    `dA` (B, E, N), `dD`, `dbias` (B, E) are one batch element's share each; `dB`, `dC` (blocks, B, L, G, N) one
    block's. The adjoint state g_l = C_l dy_l + exp(d_{l+1} A) g_{l+1} runs from the end.
    """
    N, block = sizes.states, sizes.block
    tile = 4 * N * block
    sums = N * _ROW
    buffer = np.empty((3 * tile + 2 * sums + 8 * N * CHUNK + 11 * _ROW + 4 * block * 2 + 512) // 4, np.float32)
    decays = aligned(buffer)
    adjoint = decays + tile
    dA_tile = adjoint + tile
    dB_sums = dA_tile + tile
    dC_sums = dB_sums + sums
    dD_sums = dC_sums + sums
    dbias_sums = dD_sums + 4 * block
    d_row = dbias_sums + 4 * block
    x_row = d_row + _ROW
    u_row = x_row + _ROW
    slope_row = u_row + _ROW
    y_row = slope_row + _ROW
    dy_row = y_row + _ROW
    dd_row = dy_row + _ROW
    dx_row = dd_row + _ROW
    a_row = dx_row + _ROW
    h_row = a_row + _ROW  # one vector more than the others: the state before the chunk
    spare = h_row + _ROW + VECTOR_BYTES
    B_tile = spare + VECTOR_BYTES
    C_tile = B_tile + 4 * N * CHUNK
    for item in range(start, stop):
        s = item % sizes.blocks
        g = item // sizes.blocks % sizes.groups
        b = item // (sizes.blocks * sizes.groups)
        channels = min(block, sizes.width - s * block)
        first_channel = g * sizes.width + s * block
        batch = sizes.groups * sizes.width
        state_offset = 4 * (b * batch + first_channel) * N
        load_matrix(A + 4 * first_channel * N, decays, channels, N, block, LOG2_E)
        load_matrix(0 if dlast == 0 else dlast + state_offset, adjoint, channels, N, block, 1.0)
        for at in range(0, tile, VECTOR_BYTES):
            store(dA_tile + at, splat(0.0))
        for at in range(0, 8 * block, VECTOR_BYTES):
            store(dD_sums + at, splat(0.0))
        for chunk in range(sizes.chunks - 1, -1, -1):
            first = chunk * CHUNK
            steps = min(CHUNK, sizes.length - first)
            _load_projections(B, B_tile, sizes, b, g, first, steps)
            _load_projections(C, C_tile, sizes, b, g, first, steps)
            for at in range(0, 2 * sums, VECTOR_BYTES):
                store(dB_sums + at, splat(0.0))
            for j in range(0, channels, LANES):
                channel = first_channel + j
                count = channels - j
                bias_e = load_vector(bias, channel, count, spare)
                D_e = load_vector(D, channel, count, spare)
                for k in range(steps):
                    l = step_row(sizes.order, first + k)
                    at = k * VECTOR_BYTES
                    d = load_some(row_address(delta, b, l) + 4 * channel, count, spare) + bias_e
                    slope = splat(1.0)
                    if sizes.softplus != 0:
                        slope = sigmoid(d)
                        d = softplus(d)
                    x = load_some(row_address(u, b, l) + 4 * channel, count, spare)
                    out = load_some(row_address(dy, b, l) + 4 * channel, count, spare)
                    if z.address != 0:
                        gate = load_some(row_address(z, b, l) + 4 * channel, count, spare)
                        out = out * (gate * sigmoid(gate))
                    store(d_row + at, d)
                    store(slope_row + at, slope)
                    store(u_row + at, x)
                    store(x_row + at, d * x)
                    store(y_row + at, D_e * x)
                    store(dy_row + at, out)
                    store(dd_row + at, splat(0.0))
                    store(dx_row + at, splat(0.0))
                for n in range(N):
                    cell = 4 * (n * block + j)
                    rate = load(decays + cell)
                    h = load(checkpoints + (item * sizes.chunks + chunk) * tile + cell)
                    store(h_row, h)
                    for k in range(steps):
                        at = k * VECTOR_BYTES
                        a = exp2_product(load(d_row + at), rate)
                        h = a * h + load(x_row + at) * broadcast(B_tile + 4 * (n * CHUNK + k))
                        store(a_row + at, a)
                        store(h_row + at + VECTOR_BYTES, h)
                        store(y_row + at, load(y_row + at) + h * broadcast(C_tile + 4 * (n * CHUNK + k)))
                    gradient = load(adjoint + cell)
                    rate_sum = splat(0.0)
                    for back in range(steps):
                        k = steps - 1 - back
                        at = k * VECTOR_BYTES
                        here = n * _ROW + at
                        out = load(dy_row + at)
                        gradient = gradient + out * broadcast(C_tile + 4 * (n * CHUNK + k))
                        store(dC_sums + here, load(dC_sums + here) + out * load(h_row + at + VECTOR_BYTES))
                        store(dB_sums + here, load(dB_sums + here) + gradient * load(x_row + at))
                        store(dx_row + at, load(dx_row + at) + gradient * broadcast(B_tile + 4 * (n * CHUNK + k)))
                        gradient = gradient * load(a_row + at)
                        exponent = gradient * load(h_row + at)
                        store(dd_row + at, load(dd_row + at) + exponent * rate)
                        rate_sum = rate_sum + exponent * load(d_row + at)
                    store(adjoint + cell, gradient)
                    store(dA_tile + cell, load(dA_tile + cell) + rate_sum)
                D_sum = splat(0.0)
                bias_sum = splat(0.0)
                for k in range(steps):
                    l = step_row(sizes.order, first + k)
                    at = k * VECTOR_BYTES
                    x, out, dx = load(u_row + at), load(dy_row + at), load(dx_row + at)
                    d_delta = (load(dd_row + at) * splat(LN_2) + dx * x) * load(slope_row + at)
                    D_sum = D_sum + out * x
                    bias_sum = bias_sum + d_delta
                    store_some(row_address(ddelta, b, l) + 4 * channel, d_delta, count, spare)
                    store_some(row_address(du, b, l) + 4 * channel, dx * load(d_row + at) + out * D_e, count, spare)
                    if z.address != 0:
                        gate = load_some(row_address(z, b, l) + 4 * channel, count, spare)
                        s_z = sigmoid(gate)
                        slope = s_z + gate * s_z * (splat(1.0) - s_z)
                        out = load_some(row_address(dy, b, l) + 4 * channel, count, spare)
                        store_some(row_address(dz, b, l) + 4 * channel, out * load(y_row + at) * slope, count, spare)
                store(dD_sums + 4 * j, load(dD_sums + 4 * j) + D_sum)
                store(dbias_sums + 4 * j, load(dbias_sums + 4 * j) + bias_sum)
            for k in range(steps):
                l = step_row(sizes.order, first + k)
                row = 4 * (((s * sizes.batches + b) * sizes.length + l) * sizes.groups + g) * N
                for n in range(N):
                    put_float(dB + row + 4 * n, sum_lanes(load(dB_sums + n * _ROW + k * VECTOR_BYTES)))
                    put_float(dC + row + 4 * n, sum_lanes(load(dC_sums + n * _ROW + k * VECTOR_BYTES)))
        store_matrix(dA_tile, dA + state_offset, channels, N, block)
        store_matrix(adjoint, dinitial + state_offset, channels, N, block)
        for e in range(channels):
            put_float(dD + 4 * (b * batch + first_channel + e), get_float(dD_sums + 4 * e))
            put_float(dbias + 4 * (b * batch + first_channel + e), get_float(dbias_sums + 4 * e))
    keep_alive(buffer)
