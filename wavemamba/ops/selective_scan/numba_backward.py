"""The numba loop of the gradients of the selective scan; `numba_job` tells how it goes through the work."""

from __future__ import annotations

from wavemamba.ops.cpu.kernels import kernel
from wavemamba.ops.cpu.math import LN_2, exp2_product, sigmoid, softplus_and_slope, times_log2_e
from wavemamba.ops.cpu.memory import (
    clear,
    fetch_row,
    load_some,
    load_tile,
    load_vector,
    row_address,
    step_row,
    store_some,
    store_tile,
)
from wavemamba.ops.cpu.simd import (
    LANES,
    VECTOR_BYTES,
    broadcast,
    fold,
    get_float,
    get_int,
    load,
    put_float,
    splat,
    store,
    sum_halves,
)
from wavemamba.ops.selective_scan.numba_job import (
    BACKWARD,
    CHUNK,
    RUNS,
    STEPS,
    fill_runs,
    kept_states,
    load_projections,
    place_of,
    starts_here,
)

AT_ONCE = LANES // 2
"""States whose sums over channels are taken together."""


def _scratch(job):  # type: ignore[no-untyped-def]  # numba infers
    N = job.states + job.states % 2
    summed = (N + AT_ONCE - 1) // AT_ONCE * AT_ONCE
    rows = (summed + 16) * STEPS + 3 * VECTOR_BYTES
    return 12 * N * job.block + rows + 8 * job.block + 8 * N * CHUNK + RUNS


@kernel(BACKWARD, _scratch)
def backward(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    """Gradients.

    `dA` (B, N, E), `dD`, `dbias` (B, E) are one batch element's share each; `dB`, `dC` (blocks, B, L, G, N) one
    block's. The adjoint state g_l = C_l dy_l + exp(d_{l+1} A) g_{l+1} runs from the end.
    """
    states, block, length, order = job.states, job.block, job.length, job.order
    N = states + states % 2
    chunks = (length + CHUNK - 1) // CHUNK
    tile = 4 * N * block
    summed = (N + AT_ONCE - 1) // AT_ONCE * AT_ONCE
    decays = scratch
    adjoint = decays + tile
    dA_tile = adjoint + tile
    sums = dA_tile + tile  # over channels, folded: dB in the lower half of the lanes, dC in the upper
    dD_sums = sums + summed * STEPS
    dbias_sums = dD_sums + 4 * block
    d_row = dbias_sums + 4 * block
    x_row = d_row + STEPS
    dy_row = x_row + STEPS
    y_row = dy_row + STEPS
    dd_row = y_row + STEPS
    dx_row = dd_row + STEPS
    a_row = dx_row + STEPS
    a_next_row = a_row + STEPS
    h_row = a_next_row + STEPS  # whose first vector is the state before the chunk
    h_next_row = h_row + STEPS
    end_row = h_next_row + STEPS  # the state after each run of steps
    end_next_row = end_row + STEPS
    u_row = end_next_row + STEPS
    slope_row = u_row + STEPS
    dgate_row = slope_row + STEPS
    spare = dgate_row + STEPS
    B_tile = spare + VECTOR_BYTES
    C_tile = B_tile + 4 * N * CHUNK
    runs = C_tile + 4 * N * CHUNK
    s, g, b, channels, first_channel, across = place_of(job, item)
    vector_offset = 4 * (b * across + first_channel)
    state_offset = 4 * (b * across * states + first_channel)
    starts = 0 if job.starts == 0 else job.starts + 8 * b * length
    dlast = 0 if job.dlast == 0 else job.dlast + state_offset
    load_tile(job.A + 4 * first_channel, across, decays, channels, states, block, N, spare)
    load_tile(dlast, across, adjoint, channels, states, block, N, spare)
    clear(dA_tile, tile)
    clear(dD_sums, 8 * block)
    for chunk in range(chunks - 1, -1, -1):
        first = chunk * CHUNK
        steps = min(CHUNK, length - first)
        run_count = fill_runs(runs, starts, first, steps)
        start = starts_here(starts, first)
        load_projections(job.B, B_tile, job, b, g, first, steps, N)
        load_projections(job.C, C_tile, job, b, g, first, steps, N)
        for n in range(summed):
            clear(sums + n * STEPS, steps * VECTOR_BYTES)
        for j in range(0, channels, LANES):
            channel = first_channel + j
            count = channels - j
            kept = kept_states(job, b, g, s, chunk, chunks, j, N)
            bias_e = load_vector(job.bias, channel, count, spare)
            D_e = load_vector(job.D, channel, count, spare)
            for k in range(steps):
                row = step_row(order, first + k)
                at = k * VECTOR_BYTES
                fetch_row(job.delta, b, order, first + k, first + steps, channel)
                fetch_row(job.u, b, order, first + k, first + steps, channel)
                fetch_row(job.dy, b, order, first + k, first + steps, channel)
                d = load_some(row_address(job.delta, b, row) + 4 * channel, count, spare) + bias_e
                slope = splat(1.0)
                if job.softplus != 0:
                    d, slope = softplus_and_slope(d)
                x = load_some(row_address(job.u, b, row) + 4 * channel, count, spare)
                out = load_some(row_address(job.dy, b, row) + 4 * channel, count, spare)
                if job.z.address != 0:
                    fetch_row(job.z, b, order, first + k, first + steps, channel)
                    gate = load_some(row_address(job.z, b, row) + 4 * channel, count, spare)
                    opened = sigmoid(gate)
                    store(dgate_row + at, out * (opened + gate * opened * (splat(1.0) - opened)))
                    out = out * (gate * opened)
                store(d_row + at, d)
                store(slope_row + at, slope)
                store(u_row + at, x)
                store(x_row + at, d * x)
                store(y_row + at, D_e * x)
                store(dy_row + at, out)
                store(dd_row + at, splat(0.0))
                store(dx_row + at, splat(0.0))
            for n in range(0, N, 2):
                cell = 4 * (n * block + j)
                cell_next = cell + 4 * block
                rate, rate_next = times_log2_e(load(decays + cell)), times_log2_e(load(decays + cell_next))
                h, h_next = load(kept + n * VECTOR_BYTES), load(kept + (n + 1) * VECTOR_BYTES)
                for r in range(run_count):
                    if r > 0 or start:
                        h, h_next = splat(0.0), splat(0.0)
                    begin, end = get_int(runs + 8 * r), get_int(runs + 8 * r + 8)
                    store(h_row + begin * VECTOR_BYTES, h)
                    store(h_next_row + begin * VECTOR_BYTES, h_next)
                    if n + 1 == states:  # the last one of an odd number
                        for k in range(begin, end):
                            at = k * VECTOR_BYTES
                            scalar = 4 * (k * N + n)
                            a = exp2_product(load(d_row + at), rate)
                            h = a * h + load(x_row + at) * broadcast(B_tile + scalar)
                            store(a_row + at, a)
                            store(h_row + at + VECTOR_BYTES, h)
                            store(y_row + at, load(y_row + at) + h * broadcast(C_tile + scalar))
                        end = begin
                    for k in range(begin, end):
                        at = k * VECTOR_BYTES
                        scalar = 4 * (k * N + n)
                        d, x = load(d_row + at), load(x_row + at)
                        a, a_next = exp2_product(d, rate), exp2_product(d, rate_next)
                        h = a * h + x * broadcast(B_tile + scalar)
                        h_next = a_next * h_next + x * broadcast(B_tile + scalar + 4)
                        store(a_row + at, a)
                        store(a_next_row + at, a_next)
                        store(h_row + at + VECTOR_BYTES, h)
                        store(h_next_row + at + VECTOR_BYTES, h_next)
                        y = load(y_row + at) + h * broadcast(C_tile + scalar)
                        store(y_row + at, y + h_next * broadcast(C_tile + scalar + 4))
                    store(end_row + r * VECTOR_BYTES, h)
                    store(end_next_row + r * VECTOR_BYTES, h_next)
                grad, grad_next = load(adjoint + cell), load(adjoint + cell_next)
                rate_sum, rate_sum_next = splat(0.0), splat(0.0)
                for run_back in range(run_count):
                    r = run_count - 1 - run_back
                    begin, end = get_int(runs + 8 * r), get_int(runs + 8 * r + 8)
                    h, h_next = load(end_row + r * VECTOR_BYTES), load(end_next_row + r * VECTOR_BYTES)
                    if n + 1 == states:
                        for back in range(end - begin):
                            k = end - 1 - back
                            at = k * VECTOR_BYTES
                            scalar = 4 * (k * N + n)
                            here = sums + n * STEPS + at
                            out, x, d = load(dy_row + at), load(x_row + at), load(d_row + at)
                            grad = grad + out * broadcast(C_tile + scalar)
                            store(here, load(here) + fold(grad * x, h * out))
                            store(dx_row + at, load(dx_row + at) + grad * broadcast(B_tile + scalar))
                            grad = grad * load(a_row + at)
                            h = load(h_row + at)
                            exponent = grad * h
                            store(dd_row + at, load(dd_row + at) + exponent * rate)
                            rate_sum = rate_sum + exponent * d
                        end = begin
                    for back in range(end - begin):
                        k = end - 1 - back
                        at = k * VECTOR_BYTES
                        scalar = 4 * (k * N + n)
                        here = n * STEPS + at
                        out, x, d = load(dy_row + at), load(x_row + at), load(d_row + at)
                        grad = grad + out * broadcast(C_tile + scalar)
                        grad_next = grad_next + out * broadcast(C_tile + scalar + 4)
                        store(sums + here, load(sums + here) + fold(grad * x, h * out))
                        here += STEPS
                        store(sums + here, load(sums + here) + fold(grad_next * x, h_next * out))
                        dx = load(dx_row + at) + grad * broadcast(B_tile + scalar)
                        store(dx_row + at, dx + grad_next * broadcast(B_tile + scalar + 4))
                        grad = grad * load(a_row + at)
                        grad_next = grad_next * load(a_next_row + at)
                        h, h_next = load(h_row + at), load(h_next_row + at)
                        exponent, exponent_next = grad * h, grad_next * h_next
                        store(dd_row + at, load(dd_row + at) + exponent * rate + exponent_next * rate_next)
                        rate_sum = rate_sum + exponent * d
                        rate_sum_next = rate_sum_next + exponent_next * d
                    if r > 0 or start:
                        grad, grad_next = splat(0.0), splat(0.0)
                store(adjoint + cell, grad)
                store(adjoint + cell_next, grad_next)
                store(dA_tile + cell, load(dA_tile + cell) + rate_sum)
                store(dA_tile + cell_next, load(dA_tile + cell_next) + rate_sum_next)
            D_sum = splat(0.0)
            bias_sum = splat(0.0)
            for k in range(steps):
                row = step_row(order, first + k)
                at = k * VECTOR_BYTES
                x, out, dx = load(u_row + at), load(dy_row + at), load(dx_row + at)
                d_delta = (load(dd_row + at) * splat(LN_2) + dx * x) * load(slope_row + at)
                d_u = dx * load(d_row + at) + out * D_e
                D_sum = D_sum + out * x
                bias_sum = bias_sum + d_delta
                store_some(row_address(job.ddelta, b, row) + 4 * channel, d_delta, count, spare)
                store_some(row_address(job.du, b, row) + 4 * channel, d_u, count, spare)
                if job.z.address != 0:
                    d_z = load(y_row + at) * load(dgate_row + at)
                    store_some(row_address(job.dz, b, row) + 4 * channel, d_z, count, spare)
            store(dD_sums + 4 * j, load(dD_sums + 4 * j) + D_sum)
            store(dbias_sums + 4 * j, load(dbias_sums + 4 * j) + bias_sum)
        for k in range(steps):
            row = step_row(order, first + k)
            at = 4 * (((s * job.batches + b) * length + row) * job.groups + g) * states
            for n in range(0, states, AT_ONCE):
                store(spare, sum_halves(sums + n * STEPS + k * VECTOR_BYTES, STEPS))
                for i in range(min(AT_ONCE, states - n)):
                    put_float(job.dB + at + 4 * (n + i), get_float(spare + 4 * i))
                    put_float(job.dC + at + 4 * (n + i), get_float(spare + 4 * (AT_ONCE + i)))
    dinitial = 0 if job.dinitial == 0 else job.dinitial + state_offset
    store_tile(dA_tile, job.dA + state_offset, across, channels, states, block, spare)
    store_tile(adjoint, dinitial, across, channels, states, block, spare)
    store_tile(dD_sums, job.dD + vector_offset, across, channels, 1, block, spare)
    store_tile(dbias_sums, job.dbias + vector_offset, across, channels, 1, block, spare)
