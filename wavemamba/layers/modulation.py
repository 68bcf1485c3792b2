"""Adaptive layer norm: shift, scale and gate computed from a conditioning vector."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Modulation(NamedTuple):
    """What a condition does to one step of a block; each (B, C)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def _over_tokens(vector: Tensor, like: Tensor) -> Tensor:
    """View a (B, C) vector so that it broadcasts over the token axes of `like`, (B, ..., C)."""
    return vector.view(vector.shape[0], *(1 for _ in range(like.dim() - 2)), vector.shape[-1])


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x * (1 + scale) + shift`, broadcast over tokens.

    Args:
        x: (B, ..., C).
        shift: (B, C).
        scale: (B, C).

    Returns:
        (B, ..., C).
    """
    return torch.addcmul(_over_tokens(shift, x), x, _over_tokens(1 + scale, x))


def gated_residual(x: Tensor, update: Tensor, gate: Tensor | None) -> Tensor:
    """`x + gate * update`, broadcast over tokens; `x + update` without a gate.

    Args:
        x: (B, ..., C).
        update: (B, ..., C).
        gate: (B, C), or None.

    Returns:
        (B, ..., C).
    """
    return x + update if gate is None else torch.addcmul(x, _over_tokens(gate, x), update)


class AdaLN(nn.Module):
    """`Linear(SiLU(cond))`, cut into the modulations of one block.

    Args:
        dim: width C of what is modulated.
        cond_dim: width of the condition.
        steps: how many steps the block has, each with its own shift, scale and gate.

    Source: Peebles and Xie, "Scalable diffusion models with transformers", 2023, section 3.2.
    """

    def __init__(self, dim: int, cond_dim: int, steps: int = 1) -> None:
        super().__init__()
        self.dim, self.cond_dim, self.steps = dim, cond_dim, steps
        self.linear = nn.Linear(cond_dim, 3 * steps * dim)

    def forward(self, cond: Tensor) -> tuple[Modulation, ...]:
        """Map the condition (B, cond_dim) to one `Modulation` a step, each part (B, C)."""
        parts = self.linear(F.silu(cond)).chunk(3 * self.steps, dim=-1)
        return tuple(Modulation(*parts[3 * i : 3 * i + 3]) for i in range(self.steps))

    def zero_(self) -> None:
        """Start as "no modulation, gate closed"."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def extra_repr(self) -> str:
        """The sizes, for `print`."""
        return f"{self.dim}, {self.cond_dim}, steps={self.steps}"
