# mypy: ignore-errors
# Triton's own language: no types, no unpacking inside tuples, no `and` between compile-time and run-time conditions.
"""The Triton kernels of the causal convolution; memory bounds both, so both read and write everything about once.

The forward kernel computes a tile of (steps, channels) and reads each tap's rows: all but the first reading of a row
come from the first-level cache. The gradient of an input needs the activation's slope at the width - 1 steps after it;
the backward kernel walks down the sequence instead, with the last `WIDTH` inputs and slopes in registers, so that no
slope is computed twice, and what belongs to weight and bias adds up in registers. Step `l` is row `order[l]`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wavemamba.ops.gpu.math import sigmoid

OPAQUE = ["length", "first_step"]
"""Arguments that must not choose another compilation."""


@triton.jit
def _row(order, l, inside, WIDE: tl.constexpr):
    """The row of step `l`; as 64 bits only where an offset inside one batch element needs them."""
    if order is None:
        row = tl.cast(l, tl.int64) if WIDE else l
    else:
        row = tl.load(order + l, mask=inside, other=0)
        row = row if WIDE else row.to(tl.int32)
    return row


@triton.jit(do_not_specialize=OPAQUE)
def forward(
    x,
    weight,
    bias,
    initial,
    order,
    first_of,
    y,
    length,
    channels,
    x_b,
    x_l,
    weight_e,
    weight_k,
    initial_b,
    initial_l,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    SILU: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The output y (B, L, E) for one tile of STEPS steps and BLOCK channels.

    Steps see nothing before the first step of their sequence, first_of (B, L).
    """
    blocks = tl.cdiv(channels, BLOCK)
    tiles = tl.cdiv(length, STEPS)
    program = tl.program_id(0)
    e = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    l = (program // blocks % tiles) * STEPS + tl.arange(0, STEPS)
    batch = (program // blocks // tiles).to(tl.int64)
    valid = (e < channels)[None, :]
    x += batch * x_b
    total = tl.zeros((STEPS, BLOCK), tl.float32)
    if first_of is not None:
        limit = tl.load(first_of + batch * length + l, mask=l < length, other=0)
    for k in tl.static_range(WIDTH):
        source = l - (WIDTH - 1) + k
        inside = (source >= 0) & (source < length)
        before = source < 0
        if first_of is not None:
            inside = inside & (source >= limit)
            before = before & (source >= limit)
        place = _row(order, source, inside, WIDE)[:, None] * x_l + e[None, :]
        x_l_k = tl.load(x + place, mask=inside[:, None] & valid, other=0.0).to(tl.float32)
        if initial is not None:
            place = initial + batch * initial_b + (source + WIDTH - 1)[:, None] * initial_l + e[None, :]
            x_l_k += tl.load(place, mask=before[:, None] & valid, other=0.0).to(tl.float32)
        tap = tl.load(weight + e * weight_e + k * weight_k, mask=e < channels, other=0.0).to(tl.float32)
        total += x_l_k * tap[None, :]
    if bias is not None:
        total += tl.load(bias + e, mask=e < channels, other=0.0).to(tl.float32)[None, :]
    if SILU:
        total *= sigmoid(total)
    place = _row(order, l, l < length, WIDE)[:, None] * channels + e[None, :]
    tl.store(y + batch * length * channels + place, total.to(y.dtype.element_ty), mask=(l < length)[:, None] & valid)


@triton.jit
def _input(x, initial, order, l, e, e_mask, length, x_l, initial_l, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """The input of step `l` as float32: before the sequence the initial state's, outside of both zero."""
    steps = tl.where(e_mask, l, length)
    row = _row(order, l, (l >= 0) & (l < length), WIDE)
    value = tl.load(x + (row * x_l + e), mask=(steps >= 0) & (steps < length), other=0.0).to(tl.float32)
    if initial is not None:
        before = (steps < 0) & (steps >= 1 - WIDTH)
        value += tl.load(initial + ((l + WIDTH - 1) * initial_l + e), mask=before, other=0.0).to(tl.float32)
    return value


@triton.jit(do_not_specialize=OPAQUE)
def backward(
    dy,
    x,
    weight,
    bias,
    initial,
    order,
    first_of,
    dx,
    dweight,
    dbias,
    dinitial,
    length,
    first_step,
    channels,
    dy_b,
    dy_l,
    x_b,
    x_l,
    weight_e,
    weight_k,
    initial_b,
    initial_l,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    SILU: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradients of ROWS steps: dx (B, L, E); of their share in dweight (parts, WIDTH, E) and dbias (parts, E).

    With p = bias + sum_k w_k x_{l-W+1+k} and s_l = dy_l SiLU'(p_l): dx_l = sum_k w_k s_{l+W-1-k},
    dw_k = sum_l s_l x_{l-W+1+k}, dbias = sum_l s_l. Steps from `first_step` < 0 on are the initial state's.
    """
    blocks = tl.cdiv(channels, BLOCK)
    parts = tl.cdiv(length - first_step, ROWS)
    program = tl.program_id(0)
    e = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    valid = e < channels
    part = program // blocks
    batch = (part // parts).to(tl.int64)
    begin = first_step + part % parts * ROWS
    end = tl.minimum(begin + ROWS, length)
    x += batch * x_b
    dy += batch * dy_b
    dx += batch * length * channels
    if first_of is not None:
        first_of += batch * length
    if initial is not None:
        initial += batch * initial_b
        dinitial += batch * (WIDTH - 1) * channels

    shift = tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        shift += tl.load(bias + e, mask=valid, other=0.0).to(tl.float32)
    taps = ()
    inputs = ()
    slopes = ()
    limits = ()
    tap_sums = ()
    bias_sum = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(WIDTH):
        taps = taps + (tl.load(weight + e * weight_e + k * weight_k, mask=valid, other=0.0).to(tl.float32),)
        tap_sums = tap_sums + (tl.zeros((BLOCK,), tl.float32),)
        slopes = slopes + (tl.zeros((BLOCK,), tl.float32),)
        limits = limits + (tl.full((), 0, tl.int32),)
        inputs = inputs + (_input(x, initial, order, begin - WIDTH + k, e, valid, length, x_l, initial_l, WIDTH, WIDE),)
    for first in range(begin, end + WIDTH - 1, STEPS):
        news = ()
        dys = ()
        for t in tl.static_range(STEPS):
            l = first + t
            news = news + (_input(x, initial, order, l, e, valid, length, x_l, initial_l, WIDTH, WIDE),)
            steps = tl.where(valid, l, length)
            row = _row(order, l, (l >= 0) & (l < length), WIDE)
            dys = dys + (tl.load(dy + (row * dy_l + e), mask=(steps >= 0) & (steps < length), other=0.0),)
        for t in tl.static_range(STEPS):
            l = first + t
            inputs = inputs[1:] + (news[t],)
            slope = dys[t].to(tl.float32)
            seen = inputs
            if first_of is not None:
                limit = tl.load(first_of + l, mask=(l >= 0) & (l < length), other=0)
                limits = limits[1:] + (limit,)
                seen = ()
                for k in tl.static_range(WIDTH):
                    seen = seen + (tl.where(l - (WIDTH - 1) + k >= limit, inputs[k], 0.0),)
            if SILU:
                p = shift
                for k in tl.static_range(WIDTH):
                    p += taps[k] * seen[k]
                gate = sigmoid(p)
                slope *= gate * (1.0 + p * (1.0 - gate))
            slopes = slopes[1:] + (slope,)
            own = tl.where(tl.where(valid, l, end) < end, slope, 0.0)
            bias_sum += own
            sums = ()
            dx_l = tl.zeros((BLOCK,), tl.float32)
            for k in tl.static_range(WIDTH):
                sums = sums + (tap_sums[k] + own * seen[k],)
                later = slopes[WIDTH - 1 - k]
                if first_of is not None:
                    later = tl.where(l - (WIDTH - 1) >= limits[WIDTH - 1 - k], later, 0.0)
                dx_l += taps[k] * later
            tap_sums = sums
            target = l - (WIDTH - 1)
            targets = tl.where(valid, target, end)
            row = _row(order, target, (target >= 0) & (target < end), WIDE)
            mask = (targets >= tl.maximum(begin, 0)) & (targets < end)
            tl.store(dx + (row * channels + e), dx_l.to(dx.dtype.element_ty), mask=mask)
            if dinitial is not None:
                mask = (targets >= begin) & (targets < tl.minimum(end, 0))
                tl.store(dinitial + ((target + WIDTH - 1) * channels + e), dx_l, mask=mask)
    for k in tl.static_range(WIDTH):
        tl.store(dweight + (tl.cast(part, tl.int64) * WIDTH + k) * channels + e, tap_sums[k], mask=valid)
    if bias is not None:
        tl.store(dbias + tl.cast(part, tl.int64) * channels + e, bias_sum, mask=valid)
