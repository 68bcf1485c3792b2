"""Positions that are no table: rotations of the channels, and a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.layers.modulation import modulate
from wavemamba.layers.norm import LayerNorm


class RotaryPositions(nn.Module):
    """Rotate pairs of channels by angles that grow with the place of the token.

    The pair `(2 j, 2 j + 1)` of the first C/2 channels is rotated by `column * 10000 ** (-j / (C / 4))`, that of the
    last C/2 by the same multiple of the row, on any grid.

    Args:
        dim: width C, a multiple of 4.

    Raises:
        ConfigError: the width is no multiple of 4.

    Source: Su et al., "RoFormer", 2021; in two dimensions and on the tokens themselves: DiMSUM's released code.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise ConfigError(f"dim: expected a multiple of 4 for rotary positions, got {dim}")
        self.dim = dim

    def forward(self, tokens: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map (B, H, W, C) to the same shape; the condition has no effect."""
        by_column, by_row = tokens.to(accumulation_dtype(tokens.dtype)).chunk(2, dim=-1)
        columns, rows = self._angles(tokens.shape[2], tokens.device), self._angles(tokens.shape[1], tokens.device)
        rotated = torch.cat([rotate_pairs(by_column, columns), rotate_pairs(by_row, rows[:, None])], dim=-1)
        return rotated.to(tokens.dtype)

    def _angles(self, places: int, device: torch.device) -> Tensor:
        """(N, C / 4) in float64, for N places."""
        return torch.arange(places, dtype=torch.float64, device=device)[:, None] * rotation_frequencies(
            self.dim // 4, device
        )

    def extra_repr(self) -> str:
        """The width, for `print`."""
        return f"{self.dim}"


class ConditionalPositions(nn.Module):
    """Positions by a depthwise 3 x 3 convolution, which sees the borders: `y = x + Conv(x)`, on any grid.

    With a condition: `LN(y) * (1 + scale) + shift` with shift, scale = Linear(SiLU(cond)), and LN with weight and bias.

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.

    Source: Chu et al., "Conditional positional encodings for vision transformers", 2021; with a condition: DiMSUM's
    released code.
    """

    def __init__(self, dim: int, cond_dim: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = None if cond_dim is None else LayerNorm(dim)
        self.modulation = None if cond_dim is None else nn.Linear(cond_dim, 2 * dim)

    def forward(self, tokens: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map (B, H, W, C), with cond (B, cond_dim), to (B, H, W, C)."""
        y = tokens + self.conv(tokens.movedim(-1, 1)).movedim(1, -1)
        if self.norm is None or self.modulation is None or cond is None:
            return y
        shift, scale = self.modulation(nn.functional.silu(cond)).chunk(2, dim=-1)
        return modulate(self.norm(y), shift, scale)


def rotation_frequencies(pairs: int, device: torch.device) -> Tensor:
    """Angle of each pair from one place to the next, `10000 ** (-j / pairs)`: (pairs,) in float64."""
    return 10000.0 ** (-torch.arange(pairs, dtype=torch.float64, device=device) / pairs)


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs (2 j, 2 j + 1) of (..., 2 N) by the angles (..., N)."""
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x.unflatten(-1, (x.shape[-1] // 2, 2)).unbind(-1)
    return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)
