"""Causal depthwise convolution in vectorised PyTorch: one product and sum a tap, any device, every gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, widest_dtype
from wavemamba.ops.causal_conv1d.op import ConvInputs
from wavemamba.ops.packed import first_steps
from wavemamba.scans import invert_permutation


def run(inputs: ConvInputs) -> Tensor:
    """All steps at once; see `wavemamba.ops.causal_conv1d` for the equation and shapes."""
    x, weight, bias, silu, initial_state, order, seq_idx = inputs
    length, width = x.shape[1], weight.shape[1]
    dtype = accumulation_dtype(widest_dtype(x, weight))
    sequence = x.to(dtype) if order is None else x.to(dtype).index_select(1, order)
    if initial_state is None:
        padded = F.pad(sequence, (0, 0, width - 1, 0))
    else:
        padded = torch.cat([initial_state.to(dtype), sequence], dim=1)
    seen = [padded[:, tap : tap + length] for tap in range(width)]
    if seq_idx is not None:
        reach = torch.arange(length, device=x.device) - first_steps(seq_idx, order, width - 1)
        seen = [torch.where((reach >= width - 1 - tap)[..., None], x_l, 0) for tap, x_l in enumerate(seen)]
    taps = weight.to(dtype)
    y = seen[0] * taps[:, 0]
    for tap in range(1, width):
        y = torch.addcmul(y, seen[tap], taps[:, tap])
    if bias is not None:
        y = y + bias.to(dtype)
    if silu:
        y = F.silu(y)
    if order is not None:
        y = y.index_select(1, invert_permutation(order))
    return y.to(x.dtype)
