# mypy: ignore-errors
# Triton's own language: no types, no unpacking inside tuples, no `and` between compile-time and run-time conditions.
"""The Triton kernel of the selective scan's gradients; `triton_kernels` says how the work is laid out and why."""

from __future__ import annotations

import triton
import triton.language as tl

from wavemamba.ops.gpu.math import LN2, LOG2E, sigmoid
from wavemamba.ops.selective_scan.triton_kernels import OPAQUE, place_of, read, reset, row_of, step_size, sum_states


@triton.jit
def _chunk(
    g,
    A_sum,
    D_sum,
    bias_sum,
    chunk,
    end,
    e_end,
    n_end,
    e,
    n,
    tile,
    in_tile,
    dy,
    u,
    delta,
    z,
    B,
    C,
    order,
    starts,
    decay_rate,
    skip,
    bias,
    kept,
    kept_l,
    scratch,
    du,
    ddelta,
    dz,
    dB,
    dC,
    dy_l,
    u_l,
    delta_l,
    z_l,
    width,
    groups,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Take the gradient of the state from the end of a chunk to its start."""
    PARTS: tl.constexpr = CHUNK // STEPS
    h = read(kept + (tl.cast(chunk // CHUNK, tl.int64) * (kept_l * STATES * BLOCK) + in_tile), tile, tile is not None)
    tl.store(scratch + in_tile, h, mask=tile)
    for i in range(1, PARTS):
        first = chunk + (i - 1) * STEPS
        for t in tl.static_range(STEPS):
            l = first + t
            row = row_of(order, l, end, MASKED, WIDE)
            b_l = read(B + row * (groups * STATES), l < n_end, MASKED)
            u_t = read(u + (row * u_l + e), l < e_end, MASKED)
            d = step_size(read(delta + (row * delta_l + e), l < e_end, MASKED), bias, l < e_end, SOFTPLUS, MASKED)
            h = reset(h, starts, l, end)
            h = tl.exp2(d[None, :] * decay_rate) * h + (d * u_t)[None, :] * b_l[:, None]
        tl.store(scratch + (i * (STATES * BLOCK) + in_tile), h, mask=tile)
    tl.debug_barrier()  # a thread may read what another one wrote
    for reversed_i in range(PARTS):
        i = PARTS - 1 - reversed_i
        first = chunk + i * STEPS
        h = read(scratch + (i * (STATES * BLOCK) + in_tile), tile, tile is not None)
        rows = ()
        states = ()
        for t in tl.static_range(STEPS):
            l = first + t
            row = row_of(order, l, end, MASKED, WIDE)
            b_l = read(B + row * (groups * STATES), l < n_end, MASKED)
            u_t = read(u + (row * u_l + e), l < e_end, MASKED)
            d = step_size(read(delta + (row * delta_l + e), l < e_end, MASKED), bias, l < e_end, SOFTPLUS, MASKED)
            rows = rows + (row,)
            states = states + (h,)
            h = reset(h, starts, l, end)
            h = tl.exp2(d[None, :] * decay_rate) * h + (d * u_t)[None, :] * b_l[:, None]
        for back in tl.static_range(STEPS):
            l = first + STEPS - 1 - back
            row = rows[STEPS - 1 - back]
            here = l < e_end
            x = read(delta + (row * delta_l + e), here, MASKED)
            d = step_size(x, bias, here, SOFTPLUS, MASKED)
            b_l = read(B + row * (groups * STATES), l < n_end, MASKED)
            c_l = read(C + row * (groups * STATES), l < n_end, MASKED)
            u_t = read(u + (row * u_l + e), here, MASKED)
            dy_t = read(dy + (row * dy_l + e), here, MASKED)
            if z is not None:
                z_t = read(z + (row * z_l + e), here, MASKED)
                y_t = sum_states(h * c_l[:, None], n, STATES)
                if skip is not None:
                    y_t += skip * u_t
                gate = sigmoid(z_t)
                dz_t = dy_t * y_t * gate * (1.0 + z_t * (1.0 - gate))
                tl.store(dz + (row * width + e), dz_t.to(dz.dtype.element_ty), mask=here)
                dy_t *= z_t * gate
            dC_l = tl.sum(h * dy_t[None, :], axis=1)
            tl.store(dC + row * (groups * STATES), dC_l, mask=l < n_end)
            g += c_l[:, None] * dy_t[None, :]
            dB_l = tl.sum(g * (d * u_t)[None, :], axis=1)
            tl.store(dB + row * (groups * STATES), dB_l, mask=l < n_end)
            g_B = sum_states(g * b_l[:, None], n, STATES)
            g *= tl.exp2(d[None, :] * decay_rate)
            h = states[STEPS - 1 - back]
            g = reset(g, starts, l, end)
            q = reset(g * h, starts, l, end)
            A_sum += q * d[None, :]
            dd = sum_states(q * decay_rate, n, STATES) * LN2 + g_B * u_t
            du_t = g_B * d
            if skip is not None:
                du_t += skip * dy_t
                D_sum += u_t * dy_t
            tl.store(du + (row * width + e), du_t.to(du.dtype.element_ty), mask=here)
            if SOFTPLUS:
                dd *= sigmoid(x if bias is None else x + bias)
            bias_sum += tl.where(here, dd, 0.0) if MASKED else dd
            tl.store(ddelta + (row * width + e), dd.to(ddelta.dtype.element_ty), mask=here)
    tl.debug_barrier()  # the scratch is written again
    return g, A_sum, D_sum, bias_sum


@triton.jit(do_not_specialize=OPAQUE)
def backward(
    dy,
    dlast,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    order,
    starts,
    kept,
    scratch,
    du,
    ddelta,
    dA,
    dB,
    dC,
    dD,
    dz,
    dbias,
    dinitial,
    length,
    segments,
    segment_length,
    blocks,
    groups,
    per_group,
    dy_b,
    dy_l,
    u_b,
    u_l,
    delta_b,
    delta_l,
    z_b,
    z_l,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradients of a segment, from its end to its start.

    With g_l = dL/dh_l and decay a_l = exp(d_l A):  g_l = C_l dy_l + a_{l+1} g_{l+1}, and with q_l = g_l a_l h_{l-1}:
    dC_l = sum_e h_l dy_l,  dB_l = sum_e g_l d_l u_l,  du_l = d_l sum_n g_l B_l + D dy_l,
    dd_l = sum_n q_l A + u_l sum_n g_l B_l,  dA = sum_l q_l d_l,  dD = sum_l u_l dy_l,  dh_{-1} = a_0 g_0.

    Shapes: A (N, E); dlast, what reaches a segment from its right, (B, segments, N, E); kept (B, chunks, programs, N,
    BLOCK); scratch (programs, CHUNK / STEPS, N, BLOCK); dB, dC (blocks of channels, B, L, groups, N);
    dA (B, segments, N, E); dD, dbias (B, segments, E); dinitial (B, N, E).
    """
    batch, segment, group, block, e, valid = place_of(segments, blocks, groups, per_group, BLOCK)
    width = groups * per_group
    n = tl.arange(0, PADDED)
    tile = valid[None, :] & (n < STATES)[:, None]
    in_state = n[:, None] * width + e[None, :]
    decay_rate = tl.load(A + in_state, mask=tile, other=0.0) * LOG2E
    skip = None if D is None else tl.load(D + e, mask=valid, other=0.0).to(tl.float32)
    bias = None if delta_bias is None else tl.load(delta_bias + e, mask=valid, other=0.0).to(tl.float32)
    if dlast is None:
        g = tl.zeros((PADDED, BLOCK), tl.float32)
    else:
        g = tl.load(dlast + (batch * segments + segment) * STATES * width + in_state, mask=tile, other=0.0)
    A_sum = tl.zeros((PADDED, BLOCK), tl.float32)
    D_sum = tl.zeros((BLOCK,), tl.float32)
    bias_sum = tl.zeros((BLOCK,), tl.float32)

    dy += batch * dy_b
    u += batch * u_b
    delta += batch * delta_b
    du += batch * length * width
    ddelta += batch * length * width
    if z is not None:
        z += batch * z_b
        dz += batch * length * width
    if starts is not None:
        starts += batch * length
    B += (batch * length * groups + group) * STATES + n
    C += (batch * length * groups + group) * STATES + n
    batches = tl.num_programs(0) // (segments * blocks * groups)
    partial = (((block % blocks) * batches.to(tl.int64) + batch) * length * groups + group) * STATES
    dB += partial + n
    dC += partial + n
    kept += (batch * tl.cdiv(length, CHUNK) * (groups * blocks) + block) * (STATES * BLOCK)
    scratch += tl.program_id(0).to(tl.int64) * (CHUNK // STEPS * STATES * BLOCK)
    in_tile = n[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]

    begin = segment * segment_length
    end = tl.minimum(begin + segment_length, length)
    if EVEN:
        tile = None
        e_end = tl.full((BLOCK,), 0, tl.int32) + end
        n_end = tl.full((PADDED,), 0, tl.int32) + end
    else:
        e_end = tl.where(valid, end, 0)  # where a channel's, or a state's, steps end: one comparison for both masks
        n_end = tl.where(n < STATES, end, 0)
    chunks = tl.cdiv(end - begin, CHUNK)
    for reversed_chunk in range(chunks):
        g, A_sum, D_sum, bias_sum = _chunk(
            g,
            A_sum,
            D_sum,
            bias_sum,
            begin + (chunks - 1 - reversed_chunk) * CHUNK,
            end,
            e_end,
            n_end,
            e,
            n,
            tile,
            in_tile,
            dy,
            u,
            delta,
            z,
            B,
            C,
            order,
            starts,
            decay_rate,
            skip,
            bias,
            kept,
            groups * blocks,
            scratch,
            du,
            ddelta,
            dz,
            dB,
            dC,
            dy_l,
            u_l,
            delta_l,
            z_l,
            width,
            groups,
            STATES,
            BLOCK,
            STEPS,
            CHUNK,
            SOFTPLUS,
            True,
            WIDE,
        )
    part = batch * segments + segment
    tl.store(dA + part * STATES * width + in_state, A_sum, mask=tile)
    if skip is not None:
        tl.store(dD + part * width + e, D_sum, mask=valid)
    if bias is not None:
        tl.store(dbias + part * width + e, bias_sum, mask=valid)
    if dinitial is not None:
        if segment == 0:
            tl.store(dinitial + batch * STATES * width + in_state, g, mask=tile)
