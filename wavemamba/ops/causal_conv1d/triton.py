"""Causal depthwise convolution on a GPU: what the Triton kernels are given."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from wavemamba.ops.causal_conv1d import triton_kernels as kernels
from wavemamba.ops.causal_conv1d.op import ConvInputs
from wavemamba.ops.gpu.runtime import (
    dense_rows,
    expect_indexable,
    launch,
    rows_of,
    tile_width,
)
from wavemamba.ops.packed import first_steps

STEPS = 8
"""Steps of a forward tile."""
BACKWARD_ROWS = 32
"""Steps that a backward program walks; each needs 2 * (width - 1) more around them."""
BACKWARD_STEPS = 4
"""Steps whose loads are issued together."""


def _wide(channels: int, *tensors: Tensor) -> bool:
    """Whether an offset inside one batch element needs 64 bits."""
    return any(t.shape[1] * max(t.stride(1), channels) >= 2**31 for t in tensors)


def forward(inputs: ConvInputs) -> Tensor:
    """Sums in float32; see `wavemamba.ops.causal_conv1d.op`."""
    x, weight, bias, silu, initial_state, order, seq_idx = inputs
    batch, length, channels = x.shape
    expect_indexable(length)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x = dense_rows(x)
    initial = None if initial_state is None else dense_rows(initial_state)
    block = tile_width(channels, 128)
    launch(
        kernels.forward,
        batch * -(-length // STEPS) * -(-channels // block),
        x,
        x,
        weight,
        None if bias is None else bias.contiguous(),
        initial if weight.shape[1] > 1 else None,
        None if order is None else order.contiguous(),
        None if seq_idx is None else first_steps(seq_idx, order, weight.shape[1] - 1).to(torch.int32),
        y,
        length,
        channels,
        *rows_of(x),
        *weight.stride(),
        *rows_of(initial),
        WIDTH=weight.shape[1],
        STEPS=STEPS,
        BLOCK=block,
        SILU=silu,
        WIDE=_wide(channels, x),
    )
    return y


def backward(inputs: ConvInputs, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients; see `wavemamba.ops.causal_conv1d.op`."""
    x, weight, bias, silu, initial_state, order, seq_idx = inputs
    batch, length, channels = x.shape
    width = weight.shape[1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, dy = dense_rows(x), dense_rows(dy)
    initial = None if initial_state is None or width == 1 else dense_rows(initial_state)
    first_step = 0 if initial is None else 1 - width
    parts = batch * -(-(length - first_step) // BACKWARD_ROWS)
    new = functools.partial(dx.new_empty, dtype=torch.float32)
    dweight = new((parts, width, channels))
    dbias = None if bias is None else new((parts, channels))
    dinitial = None if initial_state is None else new(initial_state.shape)
    block = tile_width(channels, 128)
    launch(
        kernels.backward,
        parts * -(-channels // block),
        x,
        dy,
        x,
        weight,
        None if bias is None else bias.contiguous(),
        initial,
        None if order is None else order.contiguous(),
        None if seq_idx is None else first_steps(seq_idx, order, weight.shape[1] - 1).to(torch.int32),
        dx,
        dweight,
        dbias,
        None if initial is None else dinitial,
        length,
        first_step,
        channels,
        *rows_of(dy, x),
        *weight.stride(),
        *rows_of(initial),
        WIDTH=width,
        ROWS=BACKWARD_ROWS,
        STEPS=BACKWARD_STEPS,
        BLOCK=block,
        SILU=silu,
        WIDE=_wide(channels, x, dy),
        warps=1,
    )
    return dx, dweight.sum(0).T, None if dbias is None else dbias.sum(0), dinitial
