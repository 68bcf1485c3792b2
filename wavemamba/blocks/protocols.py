"""What a block asks of the parts that are injected into it; each is an `nn.Module` with such a `forward`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Branch(Protocol):
    """What `spatial=` and `frequency=` of a `DiMSUMBlock` take."""

    def __call__(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map (B, H, W, C), C half the block's width, to the same shape; cond (B, cond_dim), or None without one."""


class Fusion(Protocol):
    """What `fusion=` of a `DiMSUMBlock` takes."""

    def __call__(self, spatial: Tensor, frequency: Tensor) -> Tensor:
        """Map the results of both branches, each (B, H, W, C / 2), to (B, H, W, C)."""


class FeedForward(Protocol):
    """What `mlp=` of `DiMSUMBlock` and `SharedAttention` takes."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C), token by token."""


class Attention(Protocol):
    """What `attention=` of `SharedAttention` takes.

    With an attribute `takes_grid = True` it is called as `attention(x, grid=(H, W))`, L = H * W.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Mix the tokens of (B, L, C) -> (B, L, C)."""


class Attend(Protocol):
    """How tokens attend to each other: what `attend=` of `SpatialFrequencyFusion` and `SelfAttention` takes.

    `FullAttention`, `WindowAttention` and `LinearAttention` of `wavemamba.layers` are the library's own.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, grid: tuple[int, int]) -> Tensor:
        """Map queries, keys and values, each (B, H * W, C), of a grid (H, W) to (B, H * W, C)."""
