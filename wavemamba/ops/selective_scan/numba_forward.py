"""The numba loop of the selective scan; `numba_job` tells how it goes through the work."""

from __future__ import annotations

from wavemamba.ops.cpu.kernels import kernel
from wavemamba.ops.cpu.math import exp2_product, sigmoid, softplus, times_log2_e
from wavemamba.ops.cpu.memory import (
    fetch_row,
    load_at,
    load_tile,
    load_vector,
    step_row,
    store_at,
    store_tile,
)
from wavemamba.ops.cpu.simd import LANES, VECTOR_BYTES, broadcast, get_int, load, splat, store
from wavemamba.ops.selective_scan.numba_job import (
    CHUNK,
    FORWARD,
    RUNS,
    STEPS,
    fill_runs,
    kept_states,
    load_projections,
    place_of,
    starts_here,
)


def _scratch(job):  # type: ignore[no-untyped-def]  # numba infers
    N = job.states + job.states % 2
    return 8 * N * (job.block + CHUNK) + 3 * STEPS + VECTOR_BYTES + RUNS


@kernel(FORWARD, _scratch)
def forward(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """Scan; addresses are 0 where there is no such tensor, `checkpoints` also where none are to be kept."""
    states, block, length, order = job.states, job.block, job.length, job.order
    N = states + states % 2
    chunks = (length + CHUNK - 1) // CHUNK
    tile = 4 * N * block
    decays = scratch
    state = decays + tile
    d_row = state + tile
    x_row = d_row + STEPS
    y_row = x_row + STEPS
    spare = y_row + STEPS
    B_tile = spare + VECTOR_BYTES
    C_tile = B_tile + 4 * N * CHUNK
    runs = C_tile + 4 * N * CHUNK
    s, g, b, channels, first_channel, across = place_of(job, item)
    state_offset = 4 * (b * across * states + first_channel)
    starts = 0 if job.starts == 0 else job.starts + 8 * b * length
    initial = 0 if job.initial == 0 else job.initial + state_offset
    load_tile(job.A + 4 * first_channel, across, decays, channels, states, block, N, spare)
    load_tile(initial, across, state, channels, states, block, N, spare)
    for chunk in range(chunks):
        first = chunk * CHUNK
        steps = min(CHUNK, length - first)
        run_count = fill_runs(runs, starts, first, steps)
        start = starts_here(starts, first)
        load_projections(job.B, B_tile, job, b, g, first, steps, N)
        load_projections(job.C, C_tile, job, b, g, first, steps, N)
        for j in range(0, channels, LANES):
            channel = first_channel + j
            count = channels - j
            kept = kept_states(job, b, g, s, chunk, chunks, j, N)
            bias_e = load_vector(job.bias, channel, count, spare)
            D_e = load_vector(job.D, channel, count, spare)
            for k in range(steps):
                row = step_row(order, first + k)
                at = k * VECTOR_BYTES
                fetch_row(job.delta, b, order, first + k, length, channel)
                fetch_row(job.u, b, order, first + k, length, channel)
                d = load_at(job.delta, b, row, channel, count, spare) + bias_e
                if job.softplus != 0:
                    d = softplus(d)
                x = load_at(job.u, b, row, channel, count, spare)
                store(d_row + at, d)
                store(x_row + at, d * x)
                store(y_row + at, D_e * x)
            for n in range(0, N, 2):
                cell = 4 * (n * block + j)
                rate = times_log2_e(load(decays + cell))
                rate_next = times_log2_e(load(decays + cell + 4 * block))
                h, h_next = load(state + cell), load(state + cell + 4 * block)
                if kept != 0:
                    store(kept + n * VECTOR_BYTES, h)
                    store(kept + (n + 1) * VECTOR_BYTES, h_next)
                for r in range(run_count):
                    if r > 0 or start:
                        h, h_next = splat(0.0), splat(0.0)
                    begin, end = get_int(runs + 8 * r), get_int(runs + 8 * r + 8)
                    if n + 1 == states:  # the last one of an odd number
                        for k in range(begin, end):
                            at = k * VECTOR_BYTES
                            scalar = 4 * (k * N + n)
                            h = exp2_product(load(d_row + at), rate) * h + load(x_row + at) * broadcast(B_tile + scalar)
                            store(y_row + at, load(y_row + at) + h * broadcast(C_tile + scalar))
                        end = begin
                    for k in range(begin, end):
                        at = k * VECTOR_BYTES
                        scalar = 4 * (k * N + n)
                        d, x = load(d_row + at), load(x_row + at)
                        h = exp2_product(d, rate) * h + x * broadcast(B_tile + scalar)
                        h_next = exp2_product(d, rate_next) * h_next + x * broadcast(B_tile + scalar + 4)
                        y = load(y_row + at) + h * broadcast(C_tile + scalar)
                        store(y_row + at, y + h_next * broadcast(C_tile + scalar + 4))
                store(state + cell, h)
                store(state + cell + 4 * block, h_next)
            for k in range(steps):
                row = step_row(order, first + k)
                out = load(y_row + k * VECTOR_BYTES)
                if job.z.address != 0:
                    fetch_row(job.z, b, order, first + k, length, channel)
                    gate = load_at(job.z, b, row, channel, count, spare)
                    out = out * (gate * sigmoid(gate))
                store_at(job.y, b, row, channel, out, count, spare)
    store_tile(state, job.last + state_offset, across, channels, states, block, spare)
