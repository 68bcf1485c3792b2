"""Causal depthwise convolution, the definition: a plain loop over steps and taps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, widest_dtype
from wavemamba.ops.causal_conv1d.op import ConvInputs
from wavemamba.ops.packed import first_steps


def run(inputs: ConvInputs) -> Tensor:
    """One step at a time; see `wavemamba.ops.causal_conv1d` for the equation and shapes."""
    x, weight, bias, silu, initial_state, order, seq_idx = inputs
    batch, length, channels = x.shape
    width = weight.shape[1]
    dtype = accumulation_dtype(widest_dtype(x, weight))
    steps = list(range(length)) if order is None else order.tolist()
    if initial_state is None:
        initial_state = x.new_zeros(batch, width - 1, channels)
    seen = torch.cat([initial_state.to(dtype), *(x[:, row : row + 1].to(dtype) for row in steps)], dim=1).unbind(1)

    rows: list[Tensor | None] = [None] * length
    first = None if seq_idx is None else first_steps(seq_idx, order, width - 1)
    for step, row in enumerate(steps):
        y_l = x.new_zeros(batch, channels, dtype=dtype)
        for tap in range(width):
            x_l = seen[step + tap]
            if first is not None:
                x_l = torch.where(step + tap - width + 1 >= first[:, step, None], x_l, 0)
            y_l = y_l + weight[:, tap].to(dtype) * x_l
        if bias is not None:
            y_l = y_l + bias.to(dtype)
        rows[row] = F.silu(y_l) if silu else y_l
    return torch.stack([y_l for y_l in rows if y_l is not None], dim=1).to(x.dtype)
