"""The numba loops of the selective scan: channels in vector lanes, states one after the other, steps innermost.

A work item is a block of up to `BLOCK` channels of one batch element and group. It walks the sequence in chunks of
`CHUNK` steps; inside a chunk, `LANES` channels at a time, the state of one n stays in a register over all steps, and
what the steps share (step size, input, output) stays in the first-level cache over all n. The forward pass keeps the
state at the start of every chunk; the backward pass recomputes the others from it, chunk by chunk from the end.

Items do not depend on each other nor on the number of threads, and what they sum over channels or batch they write to
places of their own, so that results are reproducible.
"""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from wavemamba.ops.numba_math import LN_2, LOG2_E, exp2_product, sigmoid, softplus
from wavemamba.ops.numba_runtime import ROWS, Job, kernel
from wavemamba.ops.numba_simd import (
    LANES,
    VECTOR_BYTES,
    aligned,
    broadcast,
    get_float,
    inline,
    keep_alive,
    load,
    load_matrix,
    load_some,
    load_vector,
    put_float,
    row_address,
    splat,
    step_row,
    store,
    store_matrix,
    store_some,
    sum_lanes,
    take_item,
)

CHUNK = 32
BLOCK = 128
_STEPS = CHUNK * VECTOR_BYTES  # bytes of one vector a step

_SIZES = {
    "batches": np.int64,
    "length": np.int64,
    "width": np.int64,  # channels of one group
    "groups": np.int64,
    "states": np.int64,
    "block": np.int64,  # channels of a work item, a multiple of LANES
    "blocks": np.int64,  # work items in a group
    "softplus": np.int64,
}
_INPUTS = {"u": ROWS, "delta": ROWS, "z": ROWS} | dict.fromkeys(("A", "B", "C", "D", "bias", "order"), np.int64)
FORWARD = Job(**_SIZES, **_INPUTS, initial=np.int64, y=ROWS, last=np.int64, checkpoints=np.int64)
BACKWARD = Job(
    **_SIZES,
    **_INPUTS,
    checkpoints=np.int64,
    dy=ROWS,
    dlast=np.int64,
    du=ROWS,
    ddelta=ROWS,
    dz=ROWS,
    **dict.fromkeys(("dA", "dB", "dC", "dD", "dbias", "dinitial"), np.int64),
)


@inline
def _load_projections(source, target, job, b, g, first, steps):  # type: ignore[no-untyped-def]  # numba infers
    """One group of B or C, contiguous (B, L, G, N), for the steps of a chunk to an (N, CHUNK) tile."""
    for k in range(steps):
        row = step_row(job.order, first + k)
        at = source + 4 * ((b * job.length + row) * job.groups + g) * job.states
        for n in range(job.states):
            put_float(target + 4 * (n * CHUNK + k), get_float(at + 4 * n))


@kernel(FORWARD)
def forward(pointer):  # type: ignore[no-untyped-def]  # numba infers
    """Scan; addresses are 0 where there is no such tensor, `checkpoints` also where none are to be kept."""
    jobs = carray(pointer, 1)
    job = jobs[0]
    N, block, length, order = job.states, job.block, job.length, job.order
    chunks = (length + CHUNK - 1) // CHUNK
    tile = 4 * N * block
    buffer = np.empty((2 * tile + 8 * N * CHUNK + 3 * _STEPS + 4 * VECTOR_BYTES) // 4, np.float32)
    decays = aligned(buffer)
    state = decays + tile
    d_row = state + tile
    x_row = d_row + _STEPS
    y_row = x_row + _STEPS
    spare = y_row + _STEPS
    B_tile = spare + VECTOR_BYTES
    C_tile = B_tile + 4 * N * CHUNK
    while True:
        item = take_item(jobs.ctypes.data)
        if item >= job.count:
            break
        s = item % job.blocks
        g = item // job.blocks % job.groups
        b = item // (job.blocks * job.groups)
        channels = min(block, job.width - s * block)
        first_channel = g * job.width + s * block
        state_offset = 4 * (b * job.groups * job.width + first_channel) * N
        load_matrix(job.A + 4 * first_channel * N, decays, channels, N, block, LOG2_E)
        load_matrix(0 if job.initial == 0 else job.initial + state_offset, state, channels, N, block, 1.0)
        for chunk in range(chunks):
            first = chunk * CHUNK
            steps = min(CHUNK, length - first)
            kept = 0 if job.checkpoints == 0 else job.checkpoints + (item * chunks + chunk) * tile
            _load_projections(job.B, B_tile, job, b, g, first, steps)
            _load_projections(job.C, C_tile, job, b, g, first, steps)
            for j in range(0, channels, LANES):
                channel = first_channel + j
                count = channels - j
                bias_e = load_vector(job.bias, channel, count, spare)
                D_e = load_vector(job.D, channel, count, spare)
                for k in range(steps):
                    row = step_row(order, first + k)
                    at = k * VECTOR_BYTES
                    d = load_some(row_address(job.delta, b, row) + 4 * channel, count, spare) + bias_e
                    if job.softplus != 0:
                        d = softplus(d)
                    x = load_some(row_address(job.u, b, row) + 4 * channel, count, spare)
                    store(d_row + at, d)
                    store(x_row + at, d * x)
                    store(y_row + at, D_e * x)
                for n in range(N):
                    cell = 4 * (n * block + j)
                    rate = load(decays + cell)
                    h = load(state + cell)
                    if kept != 0:
                        store(kept + cell, h)
                    for k in range(steps):
                        at = k * VECTOR_BYTES
                        a = exp2_product(load(d_row + at), rate)
                        h = a * h + load(x_row + at) * broadcast(B_tile + 4 * (n * CHUNK + k))
                        store(y_row + at, load(y_row + at) + h * broadcast(C_tile + 4 * (n * CHUNK + k)))
                    store(state + cell, h)
                for k in range(steps):
                    row = step_row(order, first + k)
                    out = load(y_row + k * VECTOR_BYTES)
                    if job.z.address != 0:
                        gate = load_some(row_address(job.z, b, row) + 4 * channel, count, spare)
                        out = out * (gate * sigmoid(gate))
                    store_some(row_address(job.y, b, row) + 4 * channel, out, count, spare)
        store_matrix(state, job.last + state_offset, channels, N, block)
    keep_alive(buffer)


@kernel(BACKWARD)
def backward(pointer):  # type: ignore[no-untyped-def]  # numba infers
    """Gradients.

    `dA` (B, E, N), `dD`, `dbias` (B, E) are one batch element's share each; `dB`, `dC` (blocks, B, L, G, N) one
    block's. The adjoint state g_l = C_l dy_l + exp(d_{l+1} A) g_{l+1} runs from the end.
    """
    jobs = carray(pointer, 1)
    job = jobs[0]
    N, block, length, order = job.states, job.block, job.length, job.order
    chunks = (length + CHUNK - 1) // CHUNK
    tile = 4 * N * block
    sums = N * _STEPS
    buffer = np.empty(
        (3 * tile + 2 * sums + 10 * _STEPS + 8 * block + 8 * N * CHUNK + 4 * VECTOR_BYTES) // 4, np.float32
    )
    decays = aligned(buffer)
    adjoint = decays + tile
    dA_tile = adjoint + tile
    dB_sums = dA_tile + tile
    dC_sums = dB_sums + sums
    dD_sums = dC_sums + sums
    dbias_sums = dD_sums + 4 * block
    d_row = dbias_sums + 4 * block
    x_row = d_row + _STEPS
    u_row = x_row + _STEPS
    slope_row = u_row + _STEPS
    y_row = slope_row + _STEPS
    dy_row = y_row + _STEPS
    dd_row = dy_row + _STEPS
    dx_row = dd_row + _STEPS
    a_row = dx_row + _STEPS
    h_row = a_row + _STEPS  # one vector more than the others: the state before the chunk
    spare = h_row + _STEPS + VECTOR_BYTES
    B_tile = spare + VECTOR_BYTES
    C_tile = B_tile + 4 * N * CHUNK
    while True:
        item = take_item(jobs.ctypes.data)
        if item >= job.count:
            break
        s = item % job.blocks
        g = item // job.blocks % job.groups
        b = item // (job.blocks * job.groups)
        channels = min(block, job.width - s * block)
        first_channel = g * job.width + s * block
        vector_offset = 4 * (b * job.groups * job.width + first_channel)
        load_matrix(job.A + 4 * first_channel * N, decays, channels, N, block, LOG2_E)
        load_matrix(0 if job.dlast == 0 else job.dlast + vector_offset * N, adjoint, channels, N, block, 1.0)
        for at in range(0, tile, VECTOR_BYTES):
            store(dA_tile + at, splat(0.0))
        for at in range(0, 8 * block, VECTOR_BYTES):
            store(dD_sums + at, splat(0.0))
        for chunk in range(chunks - 1, -1, -1):
            first = chunk * CHUNK
            steps = min(CHUNK, length - first)
            kept = job.checkpoints + (item * chunks + chunk) * tile
            _load_projections(job.B, B_tile, job, b, g, first, steps)
            _load_projections(job.C, C_tile, job, b, g, first, steps)
            for at in range(0, 2 * sums, VECTOR_BYTES):
                store(dB_sums + at, splat(0.0))
            for j in range(0, channels, LANES):
                channel = first_channel + j
                count = channels - j
                bias_e = load_vector(job.bias, channel, count, spare)
                D_e = load_vector(job.D, channel, count, spare)
                for k in range(steps):
                    row = step_row(order, first + k)
                    at = k * VECTOR_BYTES
                    d = load_some(row_address(job.delta, b, row) + 4 * channel, count, spare) + bias_e
                    slope = splat(1.0)
                    if job.softplus != 0:
                        slope = sigmoid(d)
                        d = softplus(d)
                    x = load_some(row_address(job.u, b, row) + 4 * channel, count, spare)
                    out = load_some(row_address(job.dy, b, row) + 4 * channel, count, spare)
                    if job.z.address != 0:
                        gate = load_some(row_address(job.z, b, row) + 4 * channel, count, spare)
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
                    h = load(kept + cell)
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
                        here = n * _STEPS + at
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
                    row = step_row(order, first + k)
                    at = k * VECTOR_BYTES
                    x, out, dx = load(u_row + at), load(dy_row + at), load(dx_row + at)
                    d_delta = (load(dd_row + at) * splat(LN_2) + dx * x) * load(slope_row + at)
                    D_sum = D_sum + out * x
                    bias_sum = bias_sum + d_delta
                    store_some(row_address(job.ddelta, b, row) + 4 * channel, d_delta, count, spare)
                    store_some(
                        row_address(job.du, b, row) + 4 * channel, dx * load(d_row + at) + out * D_e, count, spare
                    )
                    if job.z.address != 0:
                        gate = load_some(row_address(job.z, b, row) + 4 * channel, count, spare)
                        open_by = sigmoid(gate)
                        slope = open_by + gate * open_by * (splat(1.0) - open_by)
                        out = load_some(row_address(job.dy, b, row) + 4 * channel, count, spare)
                        store_some(
                            row_address(job.dz, b, row) + 4 * channel, out * load(y_row + at) * slope, count, spare
                        )
                store(dD_sums + 4 * j, load(dD_sums + 4 * j) + D_sum)
                store(dbias_sums + 4 * j, load(dbias_sums + 4 * j) + bias_sum)
            for k in range(steps):
                row = step_row(order, first + k)
                at = 4 * (((s * job.batches + b) * length + row) * job.groups + g) * N
                for n in range(N):
                    put_float(job.dB + at + 4 * n, sum_lanes(load(dB_sums + n * _STEPS + k * VECTOR_BYTES)))
                    put_float(job.dC + at + 4 * n, sum_lanes(load(dC_sums + n * _STEPS + k * VECTOR_BYTES)))
        store_matrix(dA_tile, job.dA + vector_offset * N, channels, N, block)
        store_matrix(adjoint, job.dinitial + vector_offset * N, channels, N, block)
        for e in range(channels):
            put_float(job.dD + vector_offset + 4 * e, get_float(dD_sums + 4 * e))
            put_float(job.dbias + vector_offset + 4 * e, get_float(dbias_sums + 4 * e))
    keep_alive(buffer)
