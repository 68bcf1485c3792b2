# mypy: ignore-errors
# Triton's own language: no types, no unpacking inside tuples, no `and` between compile-time and run-time conditions.
"""Triton kernels that cut a sequence into segments for programs of their own, where a batch alone leaves a GPU idle.

The recurrence is linear in the state: over a segment, h_end = exp(A sum d) h_start + r, with r the end state that the
segment reaches from zero. `summarize` finds `sum d` and r of every segment at once, `combine` chains them, and the main
kernel then runs all segments at once, each from its right start. The gradient's recurrence is chained the same way from
the other end. This costs one more exponential for each state and step, and pays where programs are few.

Source: Blelloch, "Prefix sums and their applications", 1990, section 1.4, with one level of blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wavemamba.ops.gpu.math import LOG2E, sigmoid
from wavemamba.ops.selective_scan.triton_kernels import OPAQUE, place_of, read, reset, row_of, step_size


@triton.jit(do_not_specialize=OPAQUE)
def summarize(
    x,
    delta,
    z,
    A,
    BC,
    delta_bias,
    order,
    starts,
    reached,
    total,
    length,
    segments,
    segment_length,
    blocks,
    groups,
    per_group,
    x_b,
    x_l,
    delta_b,
    delta_l,
    z_b,
    z_l,
    shift,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BACKWARD: tl.constexpr,
    WIDE: tl.constexpr,
):
    """What a segment makes of a zero state, reached (B, segments, N, E), and its sum of step sizes, (B, segments, E).

    Forward: x = u, BC = B, from the first step on, h = a h + d u B. Backward: x = dy, BC = C, from the last step on,
    g = a (g + dy SiLU(z) C).
    """
    batch, segment, group, _, e, valid = place_of(segments, blocks, groups, per_group, BLOCK)
    width = groups * per_group
    n = tl.arange(0, PADDED)
    tile = valid[None, :] & (n < STATES)[:, None]
    in_state = n[:, None] * width + (e + shift)[None, :]
    decay_rate = tl.load(A + in_state, mask=tile, other=0.0) * LOG2E
    bias = None if delta_bias is None else tl.load(delta_bias + e, mask=valid, other=0.0).to(tl.float32)
    x += batch * x_b + e
    delta += batch * delta_b + e
    if z is not None:
        z += batch * z_b + e
    if starts is not None:
        starts += batch * length
    BC += (batch * length * groups + group) * STATES + n
    state = tl.zeros((PADDED, BLOCK), tl.float32)
    sizes = tl.zeros((BLOCK,), tl.float32)
    begin = segment * segment_length
    end = tl.minimum(begin + segment_length, length)
    e_end = tl.where(valid, end, 0)  # where a channel's, or a state's, steps end: one comparison makes both masks
    n_end = tl.where(n < STATES, end, 0)
    for start in range(begin, end, STEPS):
        rows = ()
        steps = ()
        xs = ()
        ds = ()
        for t in tl.static_range(STEPS):
            l = tl.maximum(begin + end - 1 - start - t, begin) if BACKWARD else start + t
            row = row_of(order, l, end, True, WIDE)
            here = start + t < e_end
            rows = rows + (row,)
            steps = steps + (l,)
            xs = xs + (read(x + row * x_l, here, True),)
            ds = ds + (read(delta + row * delta_l, here, True),)
        for t in tl.static_range(STEPS):
            here = start + t < e_end
            bc_l = read(BC + rows[t] * (groups * STATES), start + t < n_end, True)
            d = step_size(ds[t], bias, here, SOFTPLUS, True)
            sizes += d
            decay = tl.exp2(d[None, :] * decay_rate)
            if BACKWARD:
                x_t = xs[t]
                if z is not None:
                    z_t = read(z + rows[t] * z_l, here, True)
                    x_t *= z_t * sigmoid(z_t)
                state = reset(decay * (state + x_t[None, :] * bc_l[:, None]), starts, steps[t], length)
            else:
                state = decay * reset(state, starts, steps[t], length) + (d * xs[t])[None, :] * bc_l[:, None]
    part = batch * segments + segment
    tl.store(reached + part * STATES * width + in_state, state, mask=tile)
    tl.store(total + part * width + e, sizes, mask=valid)


@triton.jit(do_not_specialize=OPAQUE)
def combine(
    A,
    start,
    reached,
    total,
    broken,
    segments,
    width,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Turn what every segment reached from zero into the state that enters it, in place: (B, segments, N, E).

    Nothing passes through a segment that is broken, (B, segments): a sequence starts in it.
    """
    blocks = tl.cdiv(STATES * width, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    valid = place < STATES * width
    decay_rate = tl.load(A + place, mask=valid, other=0.0) * LOG2E
    if start is None:
        state = tl.zeros((BLOCK,), tl.float32)
    else:
        state = tl.load(start + batch * STATES * width + place, mask=valid, other=0.0)
    for i in range(segments):
        part = batch * segments + (segments - 1 - i if BACKWARD else i)
        gain = tl.exp2(tl.load(total + part * width + place % width, mask=valid, other=0.0) * decay_rate)
        own = tl.load(reached + part * STATES * width + place, mask=valid, other=0.0)
        tl.store(reached + part * STATES * width + place, state, mask=valid)
        entering = state if broken is None else tl.where(tl.load(broken + part) != 0, 0.0, state)
        state = gain * entering + own
