"""A Mamba over the tokens of an image."""

from __future__ import annotations

from torch import Tensor, nn

from wavemamba.blocks.mamba_step import GatedMamba, check_cond, check_map
from wavemamba.scans import ScanOrder, scan_order


class SpatialMambaBlock(nn.Module):
    """One gated residual Mamba step over the tokens of a map, in a chosen scan order.

        x + gate * Mamba(x * (1 + scale) + shift),    shift, scale, gate = Linear(SiLU(cond))

    With `cond_dim=None`: `x + Mamba(RMSNorm(x))`.

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.
        scan: a `ScanOrder` or the name of one: "raster", "column", "snake", "hilbert", ...
        mixer: a module called as `mixer(tokens, cond, order=order)`, (B, L, C) -> (B, L, C), which reads its tokens in
            the sequence `order` (L,) int64, or in turn where that is None; None: `MambaMixer(dim)`.

    Raises:
        ConfigError: an option has an unknown name or a value out of range.

    Source: Phung et al., "DiMSUM", 2024, section 4.1.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int | None = None,
        *,
        scan: str | ScanOrder = "raster",
        mixer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.cond_dim = dim, cond_dim
        self.scan = scan_order(scan) if isinstance(scan, str) else scan
        self.step = GatedMamba(dim, cond_dim, mixer)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Mix the tokens.

        Args:
            x: (B, H, W, C), any H, W >= 1.
            cond: (B, cond_dim), or None where the block was built without.

        Returns:
            (B, H, W, C).

        Raises:
            ShapeError: a size does not fit, or the condition is missing or unexpected.
        """
        height, width = check_map(x, self.dim)
        check_cond(cond, self.cond_dim, x.shape[0])
        order = None if self.scan.is_identity else self.scan.permutation(height, width, device=x.device)
        tokens: Tensor = self.step(x.flatten(1, 2), cond, order)
        return tokens.unflatten(1, (height, width))
