"""Normalisation in float32, and the one function that adds the residual and then norms."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError


class RMSNorm(nn.Module):
    """Root-mean-square norm: `x / sqrt(mean(x^2) + eps) * weight` over the last axis, in float32.

    Args:
        dim: size of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalise (..., C); the result has the dtype of `x`, or `dtype`."""
        wide = accumulation_dtype(x.dtype)
        y = F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps)
        return y.to(dtype or x.dtype)


class LayerNorm(nn.Module):
    """Layer norm with weight and bias over the last axis, in float32.

    Args:
        dim: size of the last axis.
        eps: added to the variance.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalise (..., C); the result has the dtype of `x`, or `dtype`."""
        wide = accumulation_dtype(x.dtype)
        y = F.layer_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.bias.to(wide), self.eps)
        return y.to(dtype or x.dtype)


NORMS: dict[str, Callable[[int], RMSNorm | LayerNorm]] = {"rms": RMSNorm, "layer": LayerNorm}


def make_norm(name: str, dim: int) -> RMSNorm | LayerNorm:
    """Build the norm called "rms" or "layer" for width `dim`."""
    if name not in NORMS:
        raise ConfigError(f"norm: expected one of {', '.join(NORMS)}, got {name!r}")
    return NORMS[name](dim)


def plain_layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer norm without weight and bias over the last axis of (..., C), in float32, returned in the dtype of `x`."""
    return F.layer_norm(x.to(accumulation_dtype(x.dtype)), x.shape[-1:], eps=eps).to(x.dtype)


def add_norm(hidden: Tensor, residual: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Add the residual, then norm: `residual + hidden` and its norm.

    Args:
        hidden: (B, ..., C).
        residual: (B, ..., C) in float32, or None at the first block.
        norm: an `RMSNorm` or `LayerNorm`.

    Returns:
        The normed sum in the dtype of `hidden`, and the sum in float32 (float64 for float64 inputs).
    """
    wide = hidden.to(accumulation_dtype(hidden.dtype))
    total = wide if residual is None else residual + wide
    return norm(total, hidden.dtype), total
