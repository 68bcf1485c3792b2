"""The DiMSUM block: a spatial and a frequency Mamba, fused, and an MLP."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from wavemamba.blocks.fusion import SpatialFrequencyFusion
from wavemamba.blocks.map_block import MapBlock, expect_branch, expect_fit
from wavemamba.blocks.pre_norm import PreNormBlock
from wavemamba.blocks.spatial import SpatialMambaBlock
from wavemamba.blocks.wavelet import WaveletMambaBlock
from wavemamba.errors import ConfigError
from wavemamba.layers.norm import Norm
from wavemamba.layers.part_checks import expect_part, expect_result


class DiMSUMBlock(PreNormBlock):
    """Pre-norm block that carries `(x, residual)` along the depth.

        residual = residual + drop_path(x);  n = norm(residual)
        s, f = halves of n along the channels
        h = n + fusion(spatial(s, cond), frequency(f, cond))
        x = h + gate * MLP(norm(h) * (1 + scale) + shift),    shift, scale, gate = Linear(SiLU(cond))

    With `cond_dim=None`: `x = h + MLP(norm(h))`. Parts are injected; each default has half the width.

    Args:
        dim: width C, even.
        cond_dim: width of the condition, or None.
        spatial: a `Branch`, called as `spatial(x, cond)` on (B, H, W, C / 2); None: `SpatialMambaBlock(C / 2)`.
        frequency: the same on frequencies; None: `WaveletMambaBlock(C / 2)`.
        fusion: a `Fusion`, two maps of width C / 2 -> (B, H, W, C); None: `SpatialFrequencyFusion(C)`.
        mlp: (..., C) -> (..., C); None: the gated MLP of ratio 4; "none": no feed-forward step, `x = h`.
        norm: "rms", "layer", or a function of the width that makes a norm, called once for each norm.
        drop_path: probability in [0, 1) that training drops `x` of a sample before it is added to the residual.
        channels_first: take and return (B, C, H, W), `residual` too.

    Raises:
        ConfigError: the width is odd, an option is unknown or out of range, or a part cannot be called as one.

    Source: Phung et al., "DiMSUM", 2024, section 4 and figure 3.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int | None = None,
        *,
        spatial: nn.Module | None = None,
        frequency: nn.Module | None = None,
        fusion: nn.Module | None = None,
        mlp: nn.Module | Literal["none"] | None = None,
        norm: Norm = "rms",
        drop_path: float = 0.0,
        channels_first: bool = False,
    ) -> None:
        super().__init__(dim, cond_dim, norm=norm, drop_path=drop_path, channels_first=channels_first)
        if dim % 2:
            raise ConfigError(f"dim: expected an even width, got {dim}")
        half = dim // 2
        self.spatial = (
            SpatialMambaBlock(half, cond_dim) if spatial is None else expect_branch("spatial", spatial, half, cond_dim)
        )
        self.frequency = (
            WaveletMambaBlock(half, cond_dim)
            if frequency is None
            else expect_branch("frequency", frequency, half, cond_dim)
        )
        self.fusion = (
            SpatialFrequencyFusion(dim) if fusion is None else expect_part("fusion", fusion, ("spatial", "frequency"))
        )
        if isinstance(self.fusion, MapBlock):
            expect_fit("fusion", self.fusion, dim)
        self.end_in(mlp, norm)

    def mix(self, n: Tensor, cond: Tensor | None) -> Tensor:
        """Both branches, fused, added to their input."""
        s, f = n.chunk(2, dim=-1)
        half, meaning = tuple(s.shape), "(B, H, W, C / 2)"
        s = expect_result("spatial", self.spatial(s, cond), half, meaning)
        f = expect_result("frequency", self.frequency(f, cond), half, meaning)
        return n + expect_result("fusion", self.fusion(s, f), tuple(n.shape), "(B, H, W, C)")
