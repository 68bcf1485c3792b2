"""Patches, positions, time and labels as vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.sizes import holds_always


class PatchEmbed(nn.Module):
    """Non-overlapping patches as tokens: a `p x q` convolution of stride `(p, q)`.

    Args:
        in_chans: channels of the image.
        dim: width C of a token.
        patch_size: (p, q), rows and columns of a patch, in pixels; an int for a square.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chans, p H, q W) to (B, H, W, C)."""
        # The blocks read channels last, and so does this convolution: to move a picture costs less than to move tokens.
        # (`contiguous(memory_format=channels_last)` is the same, but vmap has no rule for it.)
        tokens: Tensor = self.proj(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
        return tokens.permute(0, 2, 3, 1).contiguous()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, as for a Linear over the patch's pixels, and zero bias."""
        bound = math.sqrt(6 / (self.proj.weight[0].numel() + self.proj.weight.shape[0]))
        nn.init.uniform_(self.proj.weight, -bound, bound)
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)


def unpatchify(tokens: Tensor, patch_shape: tuple[int, int]) -> Tensor:
    """Put patches back: (B, H, W, p * q * out) -> (B, out, p H, q W), the last axis ordered (row, column, channel)."""
    patches = tokens.unflatten(-1, (*patch_shape, -1))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def sincos_position(height: int, width: int, dim: int) -> Tensor:
    """Two-dimensional sine-cosine positions.

    The first C/2 channels encode the column and the last C/2 the row; inside each half come all sines, then all
    cosines, of `position * 10000 ** (-i / (C / 4))`.

    Args:
        height: rows H.
        width: columns W.
        dim: width C, a multiple of 4.

    Returns:
        (H, W, C) float32, on the CPU.

    Raises:
        ConfigError: the width is no multiple of 4.
    """
    if dim % 4:
        raise ConfigError(f"dim: expected a multiple of 4 for sine-cosine positions, got {dim}")
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim // 4))

    def encode(size: int) -> Tensor:
        angles = torch.arange(size, dtype=torch.float64, device="cpu")[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    columns = encode(width).expand(height, -1, -1)
    rows = encode(height)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=-1).float()


def resample_position(position: Tensor, height: int, width: int) -> Tensor:
    """Bicubic resampling of a position table (1, H, W, C) to another grid; unchanged where the grid is the same."""
    old_height, old_width = position.shape[1:3]
    if holds_always(old_height == height) and holds_always(old_width == width):
        return position
    table = position.to(accumulation_dtype(position.dtype))
    return _resample_axis(_resample_axis(table, 1, height), 2, width).to(position.dtype).contiguous()


def _resample_axis(table: Tensor, axis: int, new: int) -> Tensor:
    """Antialiased bicubic resampling of one axis: a weighted sum of the few rows that each new row reaches.

    `F.interpolate` computes the same; its gradient has no graph of symbolic size in PyTorch.
    """
    old = table.shape[axis]
    if holds_always(old == new):
        return table
    support = 2 * max(old, new) / new  # in rows of the old table
    centre = (torch.arange(new, dtype=torch.float64, device=table.device) + 0.5) * (old / new)
    grows = holds_always(old <= new)
    if torch.compiler.is_compiling() and not grows:  # how many rows are reached depends on the size
        rows = torch.arange(old, device=table.device).expand(new, old)
    else:
        taps = 5 if grows else (4 * old + new - 1) // new + 1
        rows = (centre - support + 0.5).floor()[:, None] + torch.arange(taps, device=table.device)  # (new, taps)
    distance = ((rows - centre[:, None] + 0.5) / (support / 2)).abs()
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1  # the cubic of a = -1/2: distances below 1,
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2  # and from 1 to 2
    weights = torch.where(distance < 1, near, far) * ((distance < 2) & (rows >= 0) & (rows < old))
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(table.dtype)
    table = table.movedim(axis, 0)
    lines = table.reshape(old, -1)  # a bag is a weighted sum of rows, which never stand side by side in memory
    bags = F.embedding_bag(rows.clamp(0, old - 1).long(), lines, per_sample_weights=weights, mode="sum")
    return bags.unflatten(1, table.shape[1:]).movedim(0, axis)


class TimeEmbed(nn.Module):
    """Embed the time: 256 cosine and sine features, `Linear`, SiLU, `Linear`.

    Features are `cos(t f_i)`, then `sin(t f_i)`, with `f_i = exp(-ln(10000) i / 128)`; `t` is not scaled.

    Args:
        dim: width C of the embedding.
        features: number of cosine and sine features together.
    """

    def __init__(self, dim: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Map times (B,) in [0, 1] to (B, C).

        The features have float32 (float64 for float64 times); the two layers read them in `dtype`, None: that of `t`.
        """
        half = self.features // 2
        wide = accumulation_dtype(t.dtype)
        steps = torch.arange(half, device=t.device, dtype=wide)
        angles = t.to(wide)[:, None] * torch.exp(-math.log(10000.0) / half * steps)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        y: Tensor = self.mlp(features.to(dtype or t.dtype))
        return y

    def extra_repr(self) -> str:
        """The number of features, for `print`."""
        return f"features={self.features}"

    def reset_parameters(self) -> None:
        """Normal(0.02) weights, zero biases."""
        for layer in (self.mlp[0], self.mlp[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


class LabelEmbed(nn.Module):
    """A table of class vectors, with one more row, the null class, where labels are dropped in training.

    Args:
        num_classes: classes, >= 1, without the null class.
        dim: width C.
        dropout: probability in [0, 1) that training replaces a label by the null class; 0: no null class.
    """

    def __init__(self, num_classes: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.num_classes, self.dropout = num_classes, dropout
        self.rows = num_classes + int(dropout > 0)
        self.table = nn.Embedding(self.rows, dim)

    @property
    def null_class(self) -> int | None:
        """The id of the null class, or None where there is none."""
        return self.num_classes if self.dropout > 0 else None

    def forward(self, labels: Tensor | None, like: Tensor) -> Tensor:
        """Look up the class vectors.

        Args:
            labels: (B,) int64; None: the table's last row for the whole batch.
            like: (B, ...), any tensor of the batch: its size and device are those of the missing labels.

        Returns:
            (B, C).
        """
        if labels is None:
            labels = torch.full((like.shape[0],), self.rows - 1, dtype=torch.int64, device=like.device)
        elif self.training and self.dropout > 0:
            dropped = torch.rand(labels.shape, dtype=torch.float32, device=labels.device) < self.dropout
            labels = torch.where(dropped, self.num_classes, labels)
        y: Tensor = self.table(labels)
        return y

    def reset_parameters(self) -> None:
        """Normal(0.02)."""
        nn.init.normal_(self.table.weight, std=0.02)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"num_classes={self.num_classes}, dropout={self.dropout}"
