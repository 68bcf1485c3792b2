"""Causal depthwise convolution by the CUDA kernel of the causal-conv1d package: its layouts, its dtypes, its limits."""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.ops.causal_conv1d.op import ConvInputs
from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Case
from wavemamba.ops.packed import sequence_starts
from wavemamba.scans.permutation import invert_permutation

_WIDTHS = (2, 3, 4)
_ALIGNMENT = 8
"""Elements that channels and strides of a channels-last input must be a multiple of."""


def refuses(case: Case) -> str | None:
    """What the package lacks or cannot do."""
    if case.sizes.get("width", 2) not in _WIDTHS:
        return "causal-conv1d's kernel takes widths 2, 3 and 4"
    if "initial_state" in case.features and case.sizes.get("channels", 0) % _ALIGNMENT:
        return f"causal-conv1d's kernel takes an initial state with channels in multiples of {_ALIGNMENT}"
    if "seq_idx" in case.features:
        if "initial_state" in case.features:
            return "causal-conv1d's kernel takes seq_idx or an initial state, not both"
        if case.sizes.get("channels", 0) % _ALIGNMENT:
            return f"causal-conv1d's kernel takes seq_idx with channels in multiples of {_ALIGNMENT}"
    return availability.cuda_package(case, "causal_conv1d")


def run(inputs: ConvInputs) -> Tensor:
    """Channels-last without a copy where the package can; see `wavemamba.ops.causal_conv1d` for the equation.

    Source: the interface of causal-conv1d 1.4, `causal_conv1d/causal_conv1d_interface.py`.
    """
    from causal_conv1d import causal_conv1d_fn

    x, weight, bias, silu, initial_state, order, seq_idx = inputs
    if order is not None:
        x = x.index_select(1, order)
    if x.shape[2] % _ALIGNMENT:
        sequence = x.transpose(1, 2).contiguous()
    else:
        dense = x.stride(2) == 1 and x.stride(0) % _ALIGNMENT == 0 and x.stride(1) % _ALIGNMENT == 0
        sequence = (x if dense else x.contiguous()).transpose(1, 2)
    numbers = None if seq_idx is None else sequence_starts(seq_idx, order).cumsum(1, dtype=torch.int32)
    y: Tensor = causal_conv1d_fn(
        sequence,
        weight,
        None if bias is None else bias.to(weight.dtype),
        seq_idx=numbers,
        initial_states=None if initial_state is None else initial_state.to(x.dtype).contiguous().transpose(1, 2),
        activation="silu" if silu else None,
    ).transpose(1, 2)
    return y if order is None else y.index_select(1, invert_permutation(order))
