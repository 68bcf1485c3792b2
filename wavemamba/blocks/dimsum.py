"""The DiMSUM block: a spatial and a frequency Mamba, fused, and an MLP."""

from __future__ import annotations

from timm.layers.drop import DropPath
from torch import Tensor, nn

from wavemamba.blocks.fusion import SpatialFrequencyFusion
from wavemamba.blocks.mamba_step import check_cond, check_map
from wavemamba.blocks.spatial import SpatialMambaBlock
from wavemamba.blocks.wavelet import WaveletMambaBlock
from wavemamba.checks import expect_shape
from wavemamba.errors import ConfigError
from wavemamba.layers import AdaLN, add_norm, gated_residual, make_mlp, make_norm, modulate


class DiMSUMBlock(nn.Module):
    """Pre-norm block that carries `(x, residual)` along the depth.

        residual = residual + drop_path(x);  n = RMSNorm(residual)
        s, f = halves of n along the channels
        h = n + fusion(spatial(s, cond), frequency(f, cond))
        x = h + gate * MLP(RMSNorm(h) * (1 + scale) + shift),    shift, scale, gate = Linear(SiLU(cond))

    With `cond_dim=None`: `x = h + MLP(RMSNorm(h))`. Parts are injected; each default has half the width.

    Args:
        dim: width C, even.
        cond_dim: width of the condition, or None.
        spatial: (B, H, W, C / 2), cond -> the same shape; None: `SpatialMambaBlock(C / 2)`.
        frequency: the same on frequencies; None: `WaveletMambaBlock(C / 2)`.
        fusion: two halves -> (B, H, W, C); None: `SpatialFrequencyFusion(C)`.
        mlp: (..., C) -> (..., C); None: the gated MLP of ratio 4.
        norm: "rms" or "layer".
        drop_path: probability in [0, 1) that training drops `x` of a sample before it is added to the residual.

    Raises:
        ConfigError: the width is odd, or an option is unknown or out of range.

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
        mlp: nn.Module | None = None,
        norm: str = "rms",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % 2:
            raise ConfigError(f"dim: expected an even width, got {dim}")
        if not 0 <= drop_path < 1:
            raise ConfigError(f"drop_path: expected a probability in [0, 1), got {drop_path}")
        self.dim, self.cond_dim = dim, cond_dim
        self.norm = make_norm(norm, dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.spatial = SpatialMambaBlock(dim // 2, cond_dim) if spatial is None else spatial
        self.frequency = WaveletMambaBlock(dim // 2, cond_dim) if frequency is None else frequency
        self.fusion = SpatialFrequencyFusion(dim) if fusion is None else fusion
        self.norm_mlp = make_norm(norm, dim)
        self.mlp = make_mlp(dim) if mlp is None else mlp
        self.modulation = None if cond_dim is None else AdaLN(dim, cond_dim)
        if self.modulation is not None:
            self.modulation.zero_()

    def forward(self, x: Tensor, cond: Tensor | None = None, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            x: (B, H, W, C), any H, W >= 1: what the block before returned.
            cond: (B, cond_dim), or None where the block was built without.
            residual: (B, H, W, C) in float32, what the block before returned; None at the first block.

        Returns:
            The new `x` (B, H, W, C) and `residual` (B, H, W, C) in float32 (float64 for float64 inputs).

        Raises:
            ShapeError: a size does not fit, or the condition is missing or unexpected.
        """
        check_map(x, self.dim)
        check_cond(cond, self.cond_dim, x.shape[0])
        if residual is not None:
            expect_shape("residual", residual, tuple(x.shape), "(B, H, W, C)", "pass what the block before returned")
        n, residual = add_norm(x if residual is None else self.drop_path(x), residual, self.norm)
        s, f = n.chunk(2, dim=-1)
        h = n + self.fusion(self.spatial(s, cond), self.frequency(f, cond))
        if self.modulation is None or cond is None:
            return h + self.mlp(self.norm_mlp(h)), residual
        (step,) = self.modulation(cond)
        update = self.mlp(modulate(self.norm_mlp(h), step.shift, step.scale))
        return gated_residual(h, update, step.gate), residual
