"""Fusing what the spatial and the frequency branch found."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from wavemamba.blocks.map_block import MapBlock
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.layers.attention import (
    ATTENTION_KINDS,
    AttentionKind,
    attend_on,
    check_heads,
    default_heads,
    expect_attend,
)
from wavemamba.names import choose

FusionMode = Literal["cross", "swap_k", "linear", "window", "linear_attention"]
_ATTENTION: dict[FusionMode, AttentionKind | None] = {
    "cross": "full",
    "swap_k": "full",
    "linear": None,
    "window": "window",
    "linear_attention": "linear_attention",
}
FUSION_MODES: tuple[FusionMode, ...] = tuple(_ATTENTION)


class SpatialFrequencyFusion(MapBlock):
    """Cross-attention between the two halves of a block, and a projection of both results.

    With queries, keys and values of both branches, each of width C / 2:

    - "cross": `Linear(concat(attend(q_s, k_f, v_f), attend(q_f, k_s, v_s)))`
    - "swap_k": `Linear(concat(attend(q_f, k_s, v_f), attend(q_s, k_f, v_s)))`
    - "linear": `Linear(concat(spatial, frequency))`, without attention
    - "window", "linear_attention": "cross", with `WindowAttention()` or `LinearAttention()` of `wavemamba.layers`,
      whose time and memory are linear in the tokens

    Args:
        dim: width C of the result, even.
        num_heads: a divisor of C / 2; None: the largest one up to 8, and none in "linear".
        mode: "cross", "swap_k", "linear", "window" or "linear_attention".
        attend: how the tokens attend to each other in "cross" and "swap_k", called as an `Attend`; None:
            `FullAttention()`. `WindowAttention(8, shift)` with a shift of 0 and 4 by turns over the depth, for example.
        channels_first: take two maps (B, C / 2, H, W) and return (B, C, H, W).

    Raises:
        ConfigError: the mode is unknown, the width odd, the heads do not divide it, or `attend` cannot be called as
            one or comes with a mode that has its own.

    Source: Phung et al., "DiMSUM", 2024, section 4.2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int | None = None,
        *,
        mode: FusionMode = "cross",
        attend: nn.Module | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__(dim, None, channels_first=channels_first)
        self.mode = cast(FusionMode, choose("mode", mode, FUSION_MODES))
        if dim % 2:
            raise ConfigError(f"dim: expected an even width, got {dim}")
        if self.mode == "linear" and num_heads is not None:
            raise ConfigError(f"num_heads: expected None with mode='linear', which has no attention, got {num_heads!r}")
        if self.mode not in ("cross", "swap_k") and attend is not None:
            raise ConfigError(
                f"attend: expected None with mode={self.mode!r}, got {type(attend).__name__}; "
                'give it with mode="cross" or mode="swap_k"'
            )
        self.num_heads = default_heads(dim // 2, 8) if num_heads is None else num_heads
        self.proj = nn.Linear(dim, dim)
        kind = _ATTENTION[self.mode]
        if kind is not None:
            check_heads(dim // 2, self.num_heads)
            self.spatial_qkv = nn.Linear(dim // 2, 3 * dim // 2)
            self.frequency_qkv = nn.Linear(dim // 2, 3 * dim // 2)
            self.attend = ATTENTION_KINDS[kind]() if attend is None else expect_attend(attend)

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
            if self.mode == "swap_k":
                q_s, q_f, k_s, k_f = q_f, q_s, k_f, k_s
            s = attend_on(self.attend, q_s, k_f, v_f, self.num_heads, grid)
            f = attend_on(self.attend, q_f, k_s, v_s, self.num_heads, grid)
        fused: Tensor = self.proj(torch.cat([s, f], dim=-1))
        return self.leave(fused.unflatten(1, grid))

    def extra_repr(self) -> str:
        """The options, for `print`."""
        heads = "" if self.mode == "linear" else f", num_heads={self.num_heads}"
        return f"{self.dim}{heads}, mode={self.mode!r}" + (", channels_first=True" if self.channels_first else "")
