# mypy: ignore-errors
# Triton's own language: no types, no unpacking inside tuples, no `and` between compile-time and run-time conditions.
"""The Triton kernels of the selective scan.

A program is one warp. It owns BLOCK neighbouring channels of one batch element, of one group, and of one segment of the
sequence, holds their states as a (states, channels) tile in registers, and walks the segment step by step. Step `l`
reads and writes row `order[l]`, so that a permutation is no more than a row number loaded ahead. What programs sum over
(batch, channels) goes to places of their own and is added up afterwards: no atomics, the same bits every time.

What bounds the forward pass is the special-function unit (one exp2 for each state and step, 16 a clock and
multiprocessor), then the number of instructions; memory comes third. Hence: A is scaled by log2(e) once; the loads of
STEPS steps are issued together before the first is used, as later loads cannot pass the stores; steps inside the
sequence have no masks; B and C come in float32 (their conversion would cost every channel again what it costs once
outside); and all states of a channel lie in one thread, so that nothing is reduced across threads. The compiler lays a
tile out as its loads and stores coalesce best. Tiles lie in memory with neighbouring channels side by side, but
`shift`, a zero that the compiler does not know, hides that a thread could take four at once: it takes one.

The backward pass needs the states again, last first, and registers cannot be indexed at run time. Of the ways to get
them (an associative scan over a tile in time; every state through memory; recomputation) it recomputes: the forward
pass keeps the state at the start of every chunk; a program walks a chunk forward and leaves the state before every
STEPS steps in a scratch that stays in the L2 cache, then takes these groups last first, unrolled, with the states of
STEPS steps in registers. The scan over a tile costs three times the arithmetic and more registers than there are, and
every state through memory 8 bytes for each state and step. Here four channels share a thread and four threads share a
channel's states, so that the sums over channels and those over states both take few exchanges between threads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wavemamba.ops.gpu.math import LOG2E, sigmoid, softplus

OPAQUE = ["length", "segments", "segment_length", "shift"]
"""Arguments that must not choose another compilation: sizes that vary, and a zero that hides an alignment."""


@triton.jit
def row_of(order, l, end, MASKED: tl.constexpr, WIDE: tl.constexpr):
    """The row of step `l`; as 64 bits only where an offset inside one batch element needs them."""
    if order is None:
        row = tl.minimum(l, end - 1) if MASKED else l
        row = tl.cast(row, tl.int64) if WIDE else row
    else:
        row = tl.load(order + l, mask=l < end, other=0) if MASKED else tl.load(order + l)
        row = row if WIDE else row.to(tl.int32)
    return row


@triton.jit
def read(place, mask, MASKED: tl.constexpr):
    """Load as float32, zero where masked; a mask that is always true would cost a register set to zero."""
    value = tl.load(place, mask=mask, other=0.0) if MASKED else tl.load(place)
    return value.to(tl.float32)


@triton.jit
def step_size(x, bias, here, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr):
    """The step size; zero past the end, which leaves the state as it is."""
    if bias is not None:
        x = x + bias
    if SOFTPLUS:
        x = softplus(x)
    return tl.where(here, x, 0.0) if MASKED else x


@triton.jit
def reset(x, starts, l, end):
    """Zero where step `l`, before `end`, starts a sequence; as it is where there is but one."""
    if starts is not None:
        x = tl.where(tl.load(starts + l, mask=l < end, other=0) != 0, 0.0, x)
    return x


@triton.jit
def sum_states(x, n, STATES: tl.constexpr):
    """Sum a (states, channels) tile over its states; those that fill it up may be infinity times zero."""
    if x.shape[0] != STATES:
        x = tl.where((n < STATES)[:, None], x, 0.0)
    return tl.sum(x, axis=0)


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


@triton.jit
def _advance(
    h,
    first,
    end,
    valid,
    n,
    u,
    delta,
    z,
    B,
    C,
    y,
    order,
    starts,
    decay_rate,
    skip,
    bias,
    u_l,
    delta_l,
    z_l,
    width,
    groups,
    STATES: tl.constexpr,
    STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The state after STEPS steps from `first` on, all inside the sequence; writes their outputs."""
    rows = ()
    us = ()
    ds = ()
    zs = ()
    for t in tl.static_range(STEPS):
        rows = rows + (row_of(order, first + t, end, False, WIDE),)
    for t in tl.static_range(STEPS):
        us = us + (read(u + rows[t] * u_l, valid, MASKED),)
        ds = ds + (read(delta + rows[t] * delta_l, valid, MASKED),)
        if z is not None:
            zs = zs + (read(z + rows[t] * z_l, valid, MASKED),)
    ys = ()
    for t in tl.static_range(STEPS):
        b_l = read(B + rows[t] * (groups * STATES), n < STATES, MASKED)
        c_l = read(C + rows[t] * (groups * STATES), n < STATES, MASKED)
        d = step_size(ds[t], bias, valid, SOFTPLUS, False)
        h = reset(h, starts, first + t, end)
        h = tl.exp2(d[None, :] * decay_rate) * h + (d * us[t])[None, :] * b_l[:, None]
        y_t = sum_states(h * c_l[:, None], n, STATES)
        if skip is not None:
            y_t += skip * us[t]
        if z is not None:
            y_t *= zs[t] * sigmoid(zs[t])
        ys = ys + (y_t,)
    for t in tl.static_range(STEPS):
        tl.store(y + rows[t] * width, ys[t].to(y.dtype.element_ty), mask=valid)
    return h


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
    starts,
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
    shift,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The output y (B, L, E), the last state (B, N, E), and the state at the start of every chunk, kept (B, chunks,
    programs, N, BLOCK).

    A is (N, E), start the state that enters each segment, (B, segments, N, E), both float32; starts (B, L) says which
    steps start a sequence.
    """
    batch, segment, group, block, e, valid = place_of(segments, blocks, groups, per_group, BLOCK)
    width = groups * per_group
    n = tl.arange(0, PADDED)
    tile = valid[None, :] & (n < STATES)[:, None]
    in_state = n[:, None] * width + (e + shift)[None, :]
    in_kept = n[:, None] * BLOCK + (tl.arange(0, BLOCK) + shift)[None, :]
    decay_rate = tl.load(A + in_state, mask=tile, other=0.0) * LOG2E
    skip = None if D is None else tl.load(D + e, mask=valid, other=0.0).to(tl.float32)
    bias = None if delta_bias is None else tl.load(delta_bias + e, mask=valid, other=0.0).to(tl.float32)
    if start is None:
        h = tl.zeros((PADDED, BLOCK), tl.float32)
    else:
        h = tl.load(start + (batch * segments + segment) * STATES * width + in_state, mask=tile, other=0.0)
    u += batch * u_b + e
    delta += batch * delta_b + e
    if z is not None:
        z += batch * z_b + e
    if starts is not None:
        starts += batch * length
    y += batch * length * width + e
    B += (batch * length * groups + group) * STATES + n
    C += (batch * length * groups + group) * STATES + n

    begin = segment * segment_length
    end = tl.minimum(begin + segment_length, length)
    full = begin + (end - begin) // STEPS * STEPS
    for chunk in range(begin, end, CHUNK):
        if kept is not None:
            part = (batch * tl.cdiv(length, CHUNK) + chunk // CHUNK) * (groups * blocks) + block
            tl.store(kept + part * (STATES * BLOCK) + in_kept, h, mask=(n < STATES)[:, None])
        for first in range(chunk, tl.minimum(chunk + CHUNK, full), STEPS):
            h = _advance(
                h,
                first,
                end,
                valid,
                n,
                u,
                delta,
                z,
                B,
                C,
                y,
                order,
                starts,
                decay_rate,
                skip,
                bias,
                u_l,
                delta_l,
                z_l,
                width,
                groups,
                STATES,
                STEPS,
                SOFTPLUS,
                not EVEN,
                WIDE,
            )
    for first in range(full, end):
        h = _advance(
            h,
            first,
            end,
            valid,
            n,
            u,
            delta,
            z,
            B,
            C,
            y,
            order,
            starts,
            decay_rate,
            skip,
            bias,
            u_l,
            delta_l,
            z_l,
            width,
            groups,
            STATES,
            1,
            SOFTPLUS,
            not EVEN,
            WIDE,
        )
    if last is not None:
        if end == length:
            # The offsets of `in_state`, computed again: the compiler would hold them in registers all the way.
            in_last = n[:, None] * (width + shift) + e[None, :] + shift
            tl.store(last + batch * STATES * width + in_last, h, mask=tile)
