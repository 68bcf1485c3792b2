"""Fusing what the spatial and the frequency branch found."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wavemamba.blocks.mamba_step import check_map
from wavemamba.checks import expect_floating
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.layers.attention import attend, check_heads

FusionMode = Literal["cross", "swap_k", "linear"]
FUSION_MODES: tuple[FusionMode, ...] = ("cross", "swap_k", "linear")


class SpatialFrequencyFusion(nn.Module):
    """Cross-attention between the two halves of a block, and a projection of both results.

    With queries, keys and values of both branches, each of width C / 2:

    - "cross": `Linear(concat(attend(q_s, k_f, v_f), attend(q_f, k_s, v_s)))`
    - "swap_k": `Linear(concat(attend(q_f, k_s, v_f), attend(q_s, k_f, v_s)))`
    - "linear": `Linear(concat(spatial, frequency))`, without attention

    Args:
        dim: width C of the result, even.
        num_heads: a divisor of C / 2.
        mode: "cross", "swap_k" or "linear".

    Raises:
        ConfigError: the mode is unknown, the width odd, or the heads do not divide it.

    Source: Phung et al., "DiMSUM", 2024, section 4.2.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, mode: FusionMode = "cross") -> None:
        super().__init__()
        if mode not in FUSION_MODES:
            raise ConfigError(f"mode: expected one of {', '.join(FUSION_MODES)}, got {mode!r}")
        if dim % 2:
            raise ConfigError(f"dim: expected an even width, got {dim}")
        self.dim, self.num_heads, self.mode = dim, num_heads, mode
        self.proj = nn.Linear(dim, dim)
        if mode != "linear":
            check_heads(dim // 2, num_heads)
            self.spatial_qkv = nn.Linear(dim // 2, 3 * dim // 2)
            self.frequency_qkv = nn.Linear(dim // 2, 3 * dim // 2)

    def forward(self, spatial: Tensor, frequency: Tensor) -> Tensor:
        """Fuse two maps (B, H, W, C / 2) into one (B, H, W, C).

        Raises:
            ShapeError: the maps differ in shape or width.
        """
        height, width = check_map(spatial, self.dim // 2)
        if frequency.shape != spatial.shape:
            raise ShapeError(
                f"frequency: expected the shape of spatial {tuple(spatial.shape)}, got {tuple(frequency.shape)}; "
                "both are halves of one map"
            )
        expect_floating("frequency", frequency)
        s, f = spatial.flatten(1, 2), frequency.flatten(1, 2)
        if self.mode != "linear":
            q_s, k_s, v_s = self.spatial_qkv(s).chunk(3, dim=-1)
            q_f, k_f, v_f = self.frequency_qkv(f).chunk(3, dim=-1)
            if self.mode == "cross":
                s, f = attend(q_s, k_f, v_f, self.num_heads), attend(q_f, k_s, v_s, self.num_heads)
            else:
                s, f = attend(q_f, k_s, v_f, self.num_heads), attend(q_s, k_f, v_s, self.num_heads)
        fused: Tensor = self.proj(torch.cat([s, f], dim=-1))
        return fused.unflatten(1, (height, width))
