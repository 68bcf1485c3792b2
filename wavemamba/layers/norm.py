"""Normalisation in float32, and the one function that adds the residual and then norms."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.layers.part_checks import expect_part
from wavemamba.names import choose
from wavemamba.ops.fused import rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square norm: `x / sqrt(mean(x^2) + eps) * weight` over the last axis, in float32.

    Args:
        dim: size of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalise (..., C); the result has the dtype of `x`, or `dtype`."""
        wide = accumulation_dtype(x.dtype)
        y = rms_norm(x.to(wide), self.weight.to(wide), self.eps)
        return y.to(dtype or x.dtype)

    def reset_parameters(self) -> None:
        """Weights of one."""
        nn.init.ones_(self.weight)

    def extra_repr(self) -> str:
        """Width and eps, for `print`."""
        return f"{self.weight.numel()}, eps={self.eps}"


class LayerNorm(nn.Module):
    """Layer norm with weight and bias over the last axis, in float32.

    Args:
        dim: size of the last axis.
        eps: added to the variance.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalise (..., C); the result has the dtype of `x`, or `dtype`."""
        wide = accumulation_dtype(x.dtype)
        y = F.layer_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.bias.to(wide), self.eps)
        return y.to(dtype or x.dtype)

    def reset_parameters(self) -> None:
        """Weights of one, biases of zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Width and eps, for `print`."""
        return f"{self.weight.numel()}, eps={self.eps}"


NORMS: dict[str, Callable[[int], nn.Module]] = {"rms": RMSNorm, "layer": LayerNorm}
Norm = str | Callable[[int], nn.Module]
"""A norm's name, or a function of the width that makes one, such as `nn.LayerNorm`."""


def make_norm(norm: Norm, dim: int) -> nn.Module:
    """Build a norm for width `dim`.

    Args:
        norm: "rms", "layer", or a function of the width that makes a module (..., C) -> (..., C).
        dim: width C.

    Raises:
        ConfigError: the name is unknown, or it is no function that makes a module.
    """
    if isinstance(norm, str):
        return NORMS[choose("norm", norm, NORMS)](dim)
    if isinstance(norm, nn.Module) or not callable(norm):
        raise ConfigError(
            f"norm: expected {' or '.join(map(repr, NORMS))}, or a function of the width that makes a module, such as "
            f"nn.LayerNorm, got {type(norm).__name__}"
        )
    return expect_part("norm", norm(dim), ("x",))


def plain_layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer norm without weight and bias over the last axis of (..., C), in float32, returned in the dtype of `x`."""
    return F.layer_norm(x.to(accumulation_dtype(x.dtype)), x.shape[-1:], eps=eps).to(x.dtype)


def add_norm(hidden: Tensor, residual: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Add the residual, then norm: `residual + hidden` and its norm.

    Args:
        hidden: (B, ..., C).
        residual: (B, ..., C) in float32, or None at the first block.
        norm: a module (..., C) -> (..., C).

    Returns:
        The normed sum in the dtype of `hidden`, and the sum in float32 (float64 for float64 inputs).
    """
    wide = hidden.to(accumulation_dtype(hidden.dtype))
    total = wide if residual is None else residual + wide
    return norm(total).to(hidden.dtype), total
