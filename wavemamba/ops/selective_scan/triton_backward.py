# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call"
# Kernels are not Python functions: triton.jit has no type, and their arguments are tensors of the compiler.
"""The Triton kernel of the selective scan's gradients; `triton_kernels` says how the work is laid out and why."""

from __future__ import annotations

import triton
import triton.language as tl

from wavemamba.ops.selective_scan.triton_kernels import OPAQUE, place_of, row_of, step_size
from wavemamba.ops.triton_runtime import LN2, LOG2E, sigmoid


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
    A_e,
    A_n,
    dlast_b,
    dlast_s,
    dlast_e,
    dlast_n,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """Gradients of a segment, from its end to its start.

    With g_l = dL/dh_l and decay a_l = exp(d_l A):  g_l = C_l dy_l + a_{l+1} g_{l+1}, and with q_l = g_l a_l h_{l-1}:
    dC_l = sum_e h_l dy_l,  dB_l = sum_e g_l d_l u_l,  du_l = d_l sum_n g_l B_l + D dy_l,
    dd_l = sum_n q_l A + u_l sum_n g_l B_l,  dA = sum_l q_l d_l,  dD = sum_l u_l dy_l,  dh_{-1} = a_0 g_0.

    Shapes: dlast (B, E, N) or, of several segments, what reaches each from its right (B, segments, N, E);
    kept (B, chunks, N, E); scratch (programs, CHUNK / STEPS, N, BLOCK); dB, dC (blocks of channels, B, L, groups, N);
    dA (B, segments, N, E); dD, dbias (B, segments, E); dinitial (B, N, E).
    """
    batch, segment, group, block, e, valid = place_of(segments, blocks, groups, per_group, BLOCK)
    width = groups * per_group
    n = tl.arange(0, PADDED)
    tile = valid[None, :] & (n < STATES)[:, None]
    inside_tile = n[:, None] * width + e[None, :]
    decay_rate = tl.load(A + e[None, :] * A_e + n[:, None] * A_n, mask=tile, other=0.0).to(tl.float32) * LOG2E
    if D is not None:
        skip = tl.load(D + e, mask=valid, other=0.0).to(tl.float32)
    if delta_bias is not None:
        bias = tl.load(delta_bias + e, mask=valid, other=0.0).to(tl.float32)
    if dlast is None:
        g = tl.zeros((PADDED, BLOCK), tl.float32)
    else:
        place = dlast + batch * dlast_b + segment * dlast_s + e[None, :] * dlast_e + n[:, None] * dlast_n
        g = tl.load(place, mask=tile, other=0.0).to(tl.float32)
    A_sum = tl.zeros((PADDED, BLOCK), tl.float32)
    D_sum = tl.zeros((BLOCK,), tl.float32)
    bias_sum = tl.zeros((BLOCK,), tl.float32)

    dy += batch * dy_b + e
    u += batch * u_b + e
    delta += batch * delta_b + e
    du += batch * length * width + e
    ddelta += batch * length * width + e
    if z is not None:
        z += batch * z_b + e
        dz += batch * length * width + e
    B += (batch * length * groups + group) * STATES + n
    C += (batch * length * groups + group) * STATES + n
    batches = tl.num_programs(0) // (segments * blocks * groups)
    partial = (((block % blocks) * batches.to(tl.int64) + batch) * length * groups + group) * STATES
    dB += partial + n
    dC += partial + n
    kept += batch * tl.cdiv(length, CHUNK) * STATES * width + inside_tile
    GROUPS_OF_STEPS: tl.constexpr = CHUNK // STEPS
    scratch += tl.program_id(0).to(tl.int64) * (GROUPS_OF_STEPS * STATES * BLOCK)
    scratch += n[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]

    begin = segment * segment_length
    end = tl.minimum(begin + segment_length, length)
    e_end = tl.where(valid, end, 0)  # where a channel's, or a state's, steps end: one comparison makes both masks
    n_end = tl.where(n < STATES, end, 0)
    chunks = tl.cdiv(end - begin, CHUNK)
    for reversed_chunk in range(chunks):
        chunk = begin + (chunks - 1 - reversed_chunk) * CHUNK
        h = tl.load(kept + tl.cast(chunk // CHUNK, tl.int64) * STATES * width, mask=tile, other=0.0)
        tl.store(scratch, h, mask=tile)
        for i in range(1, GROUPS_OF_STEPS):
            first = chunk + (i - 1) * STEPS
            for t in tl.static_range(STEPS):
                row = row_of(order, first + t, end)
                here = first + t < e_end
                b_l = tl.load(B + row * groups * STATES, mask=first + t < n_end, other=0.0)
                u_t = tl.load(u + row * u_l, mask=here, other=0.0).to(tl.float32)
                d = tl.load(delta + row * delta_l, mask=here, other=0.0).to(tl.float32)
                if delta_bias is not None:
                    d += bias
                d = tl.where(here, step_size(d, SOFTPLUS), 0.0)
                h = tl.exp2(d[None, :] * decay_rate) * h + (d * u_t)[None, :] * b_l[:, None]
            tl.store(scratch + i * STATES * BLOCK, h, mask=tile)
        tl.debug_barrier()  # a thread may read what another one wrote
        for reversed_i in range(GROUPS_OF_STEPS):
            i = GROUPS_OF_STEPS - 1 - reversed_i
            first = chunk + i * STEPS
            h = tl.load(scratch + i * STATES * BLOCK, mask=tile, other=0.0)
            rows = ()
            ds = ()
            decays = ()
            states = ()
            for t in tl.static_range(STEPS):
                row = row_of(order, first + t, end)
                here = first + t < e_end
                b_l = tl.load(B + row * groups * STATES, mask=first + t < n_end, other=0.0)
                u_t = tl.load(u + row * u_l, mask=here, other=0.0).to(tl.float32)
                d = tl.load(delta + row * delta_l, mask=here, other=0.0).to(tl.float32)
                if delta_bias is not None:
                    d += bias
                d = tl.where(here, step_size(d, SOFTPLUS), 0.0)
                decay = tl.exp2(d[None, :] * decay_rate)
                rows = rows + (row,)
                ds = ds + (d,)
                decays = decays + (decay,)
                states = states + (h,)
                h = decay * h + (d * u_t)[None, :] * b_l[:, None]
            for back in tl.static_range(STEPS):
                l = first + STEPS - 1 - back
                row = rows[STEPS - 1 - back]
                d = ds[STEPS - 1 - back]
                here = l < e_end
                there = l < n_end
                b_l = tl.load(B + row * groups * STATES, mask=there, other=0.0)
                c_l = tl.load(C + row * groups * STATES, mask=there, other=0.0)
                u_t = tl.load(u + row * u_l, mask=here, other=0.0).to(tl.float32)
                dy_t = tl.load(dy + row * dy_l, mask=here, other=0.0).to(tl.float32)
                if z is not None:
                    z_t = tl.load(z + row * z_l, mask=here, other=0.0).to(tl.float32)
                    y_t = tl.sum(h * c_l[:, None], axis=0)
                    if D is not None:
                        y_t += skip * u_t
                    gate = sigmoid(z_t)
                    dz_t = dy_t * y_t * gate * (1.0 + z_t * (1.0 - gate))
                    tl.store(dz + row * width, dz_t.to(dz.dtype.element_ty), mask=here)
                    dy_t *= z_t * gate
                dC_l = tl.sum(h * dy_t[None, :], axis=1)
                tl.store(dC + row * groups * STATES, dC_l, mask=there)
                g += c_l[:, None] * dy_t[None, :]
                dB_l = tl.sum(g * (d * u_t)[None, :], axis=1)
                tl.store(dB + row * groups * STATES, dB_l, mask=there)
                g_B = tl.sum(g * b_l[:, None], axis=0)
                g *= decays[STEPS - 1 - back]
                h = states[STEPS - 1 - back]
                q = g * h
                A_sum += q * d[None, :]
                dd = tl.sum(q * decay_rate, axis=0) * LN2 + g_B * u_t
                du_t = g_B * d
                if D is not None:
                    du_t += skip * dy_t
                    D_sum += u_t * dy_t
                tl.store(du + row * width, du_t.to(du.dtype.element_ty), mask=here)
                if SOFTPLUS:
                    x = tl.load(delta + row * delta_l, mask=here, other=0.0).to(tl.float32)
                    if delta_bias is not None:
                        x += bias
                    dd *= sigmoid(x)
                bias_sum += tl.where(here, dd, 0.0)
                tl.store(ddelta + row * width, dd.to(ddelta.dtype.element_ty), mask=here)
        tl.debug_barrier()  # the scratch is written again
    part = batch * segments + segment
    tl.store(dA + part * STATES * width + inside_tile, A_sum, mask=tile)
    if D is not None:
        tl.store(dD + part * width + e, D_sum, mask=valid)
    if delta_bias is not None:
        tl.store(dbias + part * width + e, bias_sum, mask=valid)
    if dinitial is not None:
        if segment == 0:
            tl.store(dinitial + batch * STATES * width + inside_tile, g, mask=tile)
