"""The feed-forward layers."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.errors import ConfigError
from wavemamba.ops.fused import gated_gelu


class Mlp(nn.Module):
    """`fc2(GELU_tanh(fc1(x)))`, with biases.

    Args:
        dim: width C.
        hidden: hidden width.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


class GatedMlp(nn.Module):
    """`fc2(GELU_tanh(a) * b)` with `a, b` the halves of `fc1(x)`, with biases.

    Args:
        dim: width C.
        hidden: hidden width, that of one half.

    Source: Shazeer, "GLU variants improve transformer", 2020 (GEGLU).
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        y: Tensor = self.fc2(gated_gelu(self.fc1(x)))
        return y


def make_mlp(dim: int, ratio: float = 4.0, *, gated: bool = True) -> nn.Module:
    """A feed-forward layer of hidden width `ratio * dim`.

    Args:
        dim: width C.
        ratio: hidden width as a multiple of C.
        gated: a `GatedMlp`; otherwise an `Mlp`.

    Returns:
        A module (..., C) -> (..., C) with the layers `fc1` and `fc2`.

    Raises:
        ConfigError: the hidden width is below 1.
    """
    if not 1 <= ratio * dim < math.inf:
        raise ConfigError(f"ratio: expected a hidden width of at least 1, got {ratio} * {dim}")
    hidden = int(ratio * dim)
    return GatedMlp(dim, hidden) if gated else Mlp(dim, hidden)
