"""Causal depthwise convolution by the CUDA kernel of the causal-conv1d package: its layouts, its dtypes, its limits."""

from __future__ import annotations

from causal_conv1d import causal_conv1d_fn
from torch import Tensor

from wavemamba.errors import BackendUnavailable
from wavemamba.scans import invert_permutation

_WIDTHS = (2, 3, 4)
_ALIGNMENT = 8
"""Elements that channels and strides of a channels-last input must be a multiple of."""


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial_state: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    """Channels-last without a copy where the package can; see `wavemamba.ops.causal_conv1d` for the equation.

    Raises:
        BackendUnavailable: the width is not 2, 3 or 4, or there is an initial state and E is not a multiple of 8.

    Source: the interface of causal-conv1d 1.4, `causal_conv1d/causal_conv1d_interface.py`.
    """
    width, channels = weight.shape[1], x.shape[2]
    if width not in _WIDTHS:
        raise BackendUnavailable(f"causal_conv1d: the package takes widths 2, 3, 4, got {width}; name another backend")
    if initial_state is not None and channels % _ALIGNMENT:
        raise BackendUnavailable(
            f"causal_conv1d: with an initial state the package takes channels in multiples of {_ALIGNMENT}, "
            f"got {channels}; name another backend"
        )
    if order is not None:
        x = x.index_select(1, order)
    if channels % _ALIGNMENT:
        sequence = x.transpose(1, 2).contiguous()
    else:
        dense = x.stride(2) == 1 and x.stride(0) % _ALIGNMENT == 0 and x.stride(1) % _ALIGNMENT == 0
        sequence = (x if dense else x.contiguous()).transpose(1, 2)
    y: Tensor = causal_conv1d_fn(
        sequence,
        weight,
        None if bias is None else bias.to(weight.dtype),
        initial_states=None if initial_state is None else initial_state.to(x.dtype).contiguous().transpose(1, 2),
        activation="silu" if silu else None,
    ).transpose(1, 2)
    return y if order is None else y.index_select(1, invert_permutation(order))
