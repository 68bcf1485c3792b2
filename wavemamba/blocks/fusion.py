"""Fusing what the spatial and the frequency branch found."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from wavemamba.blocks.map_block import MapBlock
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.layers.attention import attend, check_heads, default_heads
from wavemamba.names import choose

FusionMode = Literal["cross", "swap_k", "linear"]
FUSION_MODES: tuple[FusionMode, ...] = ("cross", "swap_k", "linear")


class SpatialFrequencyFusion(MapBlock):
    """Cross-attention between the two halves of a block, and a projection of both results.

    With queries, keys and values of both branches, each of width C / 2:

    - "cross": `Linear(concat(attend(q_s, k_f, v_f), attend(q_f, k_s, v_s)))`
    - "swap_k": `Linear(concat(attend(q_f, k_s, v_f), attend(q_s, k_f, v_s)))`
    - "linear": `Linear(concat(spatial, frequency))`, without attention

    Args:
        dim: width C of the result, even.
        num_heads: a divisor of C / 2; None: the largest one up to 8, and none in "linear".
        mode: "cross", "swap_k" or "linear".
        channels_first: take two maps (B, C / 2, H, W) and return (B, C, H, W).

    Raises:
        ConfigError: the mode is unknown, the width odd, or the heads do not divide it.

    Source: Phung et al., "DiMSUM", 2024, section 4.2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int | None = None,
        *,
        mode: FusionMode = "cross",
        channels_first: bool = False,
    ) -> None:
        super().__init__(dim, None, channels_first=channels_first)
        self.mode = cast(FusionMode, choose("mode", mode, FUSION_MODES))
        if dim % 2:
            raise ConfigError(f"dim: expected an even width, got {dim}")
        if self.mode == "linear" and num_heads is not None:
            raise ConfigError(f"num_heads: expected None with mode='linear', which has no attention, got {num_heads!r}")
        self.num_heads = default_heads(dim // 2, 8) if num_heads is None else num_heads
        self.proj = nn.Linear(dim, dim)
        if self.mode != "linear":
            check_heads(dim // 2, self.num_heads)
            self.spatial_qkv = nn.Linear(dim // 2, 3 * dim // 2)
            self.frequency_qkv = nn.Linear(dim // 2, 3 * dim // 2)

    def forward(self, spatial: Tensor, frequency: Tensor) -> Tensor:
        """Fuse two maps (B, H, W, C / 2) into one (B, H, W, C).

        Raises:
            ShapeError: the maps differ in shape or width.
        """
        halves = "pass the halves of a map, each of width C / 2: map.chunk(2, dim=channels)"
        spatial = self.enter(spatial, "spatial", self.dim // 2, halves)
        frequency = self.enter(frequency, "frequency", self.dim // 2, halves)
        if frequency.shape != spatial.shape:
            raise ShapeError(
                f"frequency: expected the shape of spatial {tuple(spatial.shape)}, got {tuple(frequency.shape)}; "
                "both are halves of one map"
            )
        grid = (spatial.shape[1], spatial.shape[2])
        s, f = spatial.flatten(1, 2), frequency.flatten(1, 2)
        if self.mode != "linear":
            q_s, k_s, v_s = self.spatial_qkv(s).chunk(3, dim=-1)
            q_f, k_f, v_f = self.frequency_qkv(f).chunk(3, dim=-1)
            if self.mode == "cross":
                s, f = attend(q_s, k_f, v_f, self.num_heads), attend(q_f, k_s, v_s, self.num_heads)
            else:
                s, f = attend(q_f, k_s, v_f, self.num_heads), attend(q_s, k_f, v_s, self.num_heads)
        fused: Tensor = self.proj(torch.cat([s, f], dim=-1))
        return self.leave(fused.unflatten(1, grid))

    def extra_repr(self) -> str:
        """The options, for `print`."""
        heads = "" if self.mode == "linear" else f", num_heads={self.num_heads}"
        return f"{self.dim}{heads}, mode={self.mode!r}" + (", channels_first=True" if self.channels_first else "")
