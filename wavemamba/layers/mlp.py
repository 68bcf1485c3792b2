"""The feed-forward layers, from timm."""

from __future__ import annotations

import math

from timm.layers.activations import GELUTanh
from timm.layers.mlp import GluMlp, Mlp
from torch import nn

from wavemamba.errors import ConfigError


def make_mlp(dim: int, ratio: float = 4.0, *, gated: bool = True) -> nn.Module:
    """A feed-forward layer of hidden width `ratio * dim`, with biases.

    Gated: `Linear(dim, 2 h)` in halves `a, b`, then `Linear(h, dim)(GELU_tanh(a) * b)`; plain: `Linear, GELU_tanh,
    Linear`.

    Args:
        dim: width C.
        ratio: hidden width as a multiple of C.
        gated: use the gated form.

    Returns:
        A module (..., C) -> (..., C) with the layers `fc1` and `fc2`.

    Raises:
        ConfigError: the hidden width is below 1.
    """
    if not 1 <= ratio * dim < math.inf:
        raise ConfigError(f"ratio: expected a hidden width of at least 1, got {ratio} * {dim}")
    hidden = int(ratio * dim)
    if gated:
        layer: nn.Module = GluMlp(dim, 2 * hidden, act_layer=GELUTanh, gate_last=False)
    else:
        layer = Mlp(dim, hidden, act_layer=GELUTanh)
    return layer
