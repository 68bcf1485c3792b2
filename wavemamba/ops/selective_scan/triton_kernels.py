# mypy: disable-error-code="misc, no-untyped-def, no-untyped-call"
# Kernels are not Python functions: triton.jit has no type, and their arguments are tensors of the compiler.
"""The Triton kernels of the selective scan.

A program is one warp. It owns BLOCK neighbouring channels of one batch element, of one group, and of one segment of the
sequence, holds their states as a (states, channels) tile in registers, and walks the segment step by step. Step `l`
reads and writes row `order[l]`, so that a permutation is no more than a row number loaded ahead. What programs sum over
(batch, channels) goes to places of their own and is added up afterwards: no atomics, the same bits every time.

What bounds the forward pass is the special-function unit (one exp2 for each state and step, 16 a clock and
multiprocessor), then the number of instructions; memory comes third. Hence: A is scaled by log2(e) once; the loads of
STEPS steps are issued together before the first is used, as later loads cannot pass the stores; B and C come in float32
(their conversion would cost every channel again what it costs once outside); and all states of a channel lie in one
thread, so that nothing is reduced across threads. The compiler lays a tile out by what it knows of the addresses it
loads: the strides `*_e` and `*_n` are kept from it (not specialised), which leaves the default, neighbouring channels in
neighbouring threads.

The backward pass needs the states again, last first, and registers cannot be indexed at run time. Of the ways to get
them (an associative scan over a tile in time; every state through memory; recomputation) this one recomputes: the
forward pass keeps the state at the start of every chunk; a program walks a chunk forward and leaves the state before
every STEPS steps in a scratch which stays in the L2 cache, then takes these groups last first, unrolled, with the
states and decays of STEPS steps in registers. The scan over a tile costs three times the arithmetic and more
registers than there are, and every state through memory 8 bytes for each state and step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wavemamba.ops.triton_runtime import LN2, LOG2E, sigmoid, softplus

OPAQUE = [
    "length",
    "segments",
    "segment_length",
    "A_e",
    "A_n",
    "start_b",
    "start_s",
    "start_e",
    "start_n",
    "last_e",
    "last_n",
    "kept_e",
]
"""Arguments that must not choose another compilation: sizes that vary, and strides hidden from the layout pass."""


@triton.jit
def row_of(order, l, length):
    """The row of step `l`, as 64 bits made of 32 so that its product with a 32-bit stride is one instruction."""
    if order is None:
        return tl.cast(l, tl.int64)
    return tl.load(order + l, mask=l < length, other=0).to(tl.int32).to(tl.int64)


@triton.jit
def step_size(x, SOFTPLUS: tl.constexpr):
    return softplus(x) if SOFTPLUS else x


@triton.jit
def place_of(segments, blocks, groups, per_group, BLOCK: tl.constexpr):
    """Which part of the work a program has: batch element, segment, group, first channel, channels, their mask."""
    program = tl.program_id(0)
    block = program % (blocks * groups)
    rest = program // (blocks * groups)
    group = block // blocks
    inside = (block % blocks) * BLOCK + tl.arange(0, BLOCK)
    channels = group * per_group + inside
    return (rest // segments).to(tl.int64), rest % segments, group, block, channels, inside < per_group


@triton.jit(do_not_specialize=OPAQUE)
def forward(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    order,
    start,
    y,
    last,
    kept,
    length,
    segments,
    segment_length,
    blocks,
    groups,
    per_group,
    u_b,
    u_l,
    delta_b,
    delta_l,
    z_b,
    z_l,
    A_e,
    A_n,
    start_b,
    start_s,
    start_e,
    start_n,
    last_e,
    last_n,
    kept_e,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """y, the last state, and the states at the start of every chunk: kept (B, chunks, STATES, E)."""
    batch, segment, group, _, e, valid = place_of(segments, blocks, groups, per_group, BLOCK)
    width = groups * per_group
    n = tl.arange(0, PADDED)
    tile = valid[None, :] & (n < STATES)[:, None]
    decay_rate = tl.load(A + e[None, :] * A_e + n[:, None] * A_n, mask=tile, other=0.0).to(tl.float32) * LOG2E
    if D is not None:
        skip = tl.load(D + e, mask=valid, other=0.0).to(tl.float32)
    if delta_bias is not None:
        bias = tl.load(delta_bias + e, mask=valid, other=0.0).to(tl.float32)
    if start is None:
        h = tl.zeros((PADDED, BLOCK), tl.float32)
    else:
        place = start + batch * start_b + segment * start_s + e[None, :] * start_e + n[:, None] * start_n
        h = tl.load(place, mask=tile, other=0.0).to(tl.float32)
    u += batch * u_b + e
    delta += batch * delta_b + e
    if z is not None:
        z += batch * z_b + e
    y += batch * length * width + e
    B += (batch * length * groups + group) * STATES + n
    C += (batch * length * groups + group) * STATES + n

    begin = segment * segment_length
    end = tl.minimum(begin + segment_length, length)
    e_end = tl.where(valid, end, 0)  # where a channel's, or a state's, steps end: one comparison makes both masks
    n_end = tl.where(n < STATES, end, 0)
    for chunk in range(begin, end, CHUNK):
        if kept is not None:
            place = kept + (batch * tl.cdiv(length, CHUNK) + chunk // CHUNK) * STATES * width
            tl.store(place + n[:, None] * width + e[None, :] * kept_e, h, mask=tile)
        for first in range(chunk, tl.minimum(chunk + CHUNK, end), STEPS):
            rows = ()
            us = ()
            deltas = ()
            zs = ()
            for t in tl.static_range(STEPS):
                rows = rows + (row_of(order, first + t, end),)
            for t in tl.static_range(STEPS):
                here = first + t < e_end
                us = us + (tl.load(u + rows[t] * u_l, mask=here, other=0.0),)
                deltas = deltas + (tl.load(delta + rows[t] * delta_l, mask=here, other=0.0),)
                if z is not None:
                    zs = zs + (tl.load(z + rows[t] * z_l, mask=here, other=0.0),)
            ys = ()
            for t in tl.static_range(STEPS):
                b_l = tl.load(B + rows[t] * groups * STATES, mask=first + t < n_end, other=0.0)
                c_l = tl.load(C + rows[t] * groups * STATES, mask=first + t < n_end, other=0.0)
                u_t = us[t].to(tl.float32)
                d = deltas[t].to(tl.float32)
                if delta_bias is not None:
                    d += bias
                d = tl.where(first + t < e_end, step_size(d, SOFTPLUS), 0.0)  # a step past the end leaves the state as it is
                h = tl.exp2(d[None, :] * decay_rate) * h + (d * u_t)[None, :] * b_l[:, None]
                y_t = tl.sum(h * c_l[:, None], axis=0)
                if D is not None:
                    y_t += skip * u_t
                if z is not None:
                    z_t = zs[t].to(tl.float32)
                    y_t *= z_t * sigmoid(z_t)
                ys = ys + (y_t,)
            for t in tl.static_range(STEPS):
                tl.store(y + rows[t] * width, ys[t].to(y.dtype.element_ty), mask=first + t < e_end)
    if last is not None:
        if end == length:
            tl.store(last + batch * STATES * width + e[None, :] * last_e + n[:, None] * last_n, h, mask=tile)
