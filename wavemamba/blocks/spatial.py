"""A Mamba over the tokens of an image."""

from __future__ import annotations

from torch import Tensor, nn

from wavemamba.blocks.mamba_step import GatedMamba
from wavemamba.blocks.map_block import MapBlock
from wavemamba.errors import ConfigError
from wavemamba.layers.norm import Norm
from wavemamba.scans import ScanOrder, scan_order


class SpatialMambaBlock(MapBlock):
    """One gated residual Mamba step over the tokens of a map, in a chosen scan order.

        x + gate * Mamba(x * (1 + scale) + shift),    shift, scale, gate = Linear(SiLU(cond))

    With `cond_dim=None`: `x + Mamba(norm(x))`.

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.
        scan: a `ScanOrder` or the name of one: "raster", "column", "snake", "hilbert", ...
        mixer: a `wavemamba.layers.Mixer`, called as `mixer(tokens, cond, order=order)`; None: `MambaMixer(dim)`.
        norm: "rms", "layer" or a function of the width that makes a norm, for `cond_dim=None` alone; None: "rms".
        channels_first: take and return (B, C, H, W).

    Raises:
        ConfigError: an option has an unknown name or a value out of range, or the mixer does not fit.

    Source: Phung et al., "DiMSUM", 2024, section 4.1.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int | None = None,
        *,
        scan: str | ScanOrder = "raster",
        mixer: nn.Module | None = None,
        norm: Norm | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__(dim, cond_dim, channels_first=channels_first)
        self.scan = expect_scan(scan)
        self.step = GatedMamba(dim, cond_dim, mixer, norm)

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
        x = self.enter(x)
        self.check_cond(cond, x.shape[0])
        grid = (x.shape[1], x.shape[2])
        tokens = self.step(x.flatten(1, 2), cond, self.scan.order_for(*grid, device=x.device))
        return self.leave(tokens.unflatten(1, grid))

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"{super().extra_repr()}, scan={self.scan.name!r}"


def expect_scan(scan: str | ScanOrder) -> ScanOrder:
    """Return the order that `scan` is or names, or raise `ConfigError`."""
    if isinstance(scan, str):
        return scan_order(scan)
    if not isinstance(scan, ScanOrder):
        raise ConfigError(f"scan: expected a ScanOrder or the name of one, got {type(scan).__name__}; see scan_order")
    return scan
