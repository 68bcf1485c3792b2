"""A Mamba over the subbands of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavemamba.blocks.mamba_step import GatedMamba, check_cond, check_map
from wavemamba.errors import ConfigError
from wavemamba.ops.haar import LAYOUTS, Layout
from wavemamba.scans import ScanOrder, scan_order
from wavemamba.transforms import FrequencyTransform, frequency_transform


def pad_to_multiple(x: Tensor, side: int) -> Tensor:
    """Repeat the last row and column until both sides of (B, H, W, C) are multiples of `side`."""
    for axis in (1, 2):
        size = x.shape[axis]
        padded = (size + side - 1) // side * side
        if padded != size:  # a graph for any size asks no more than this: concatenation would ask how much there is
            x = x.index_select(axis, torch.arange(padded, device=x.device).clamp(max=size - 1))
    return x


class WaveletMambaBlock(nn.Module):
    """One gated residual Mamba step over the frequency subbands of a map.

    With `b = T(x) / side`, T the transform with its bands put back on the grid:

        x' = T^-1(side * (b + gate * Mamba(b * (1 + scale) + shift))),    shift, scale, gate = Linear(SiLU(cond))

    With `cond_dim=None`: `b + Mamba(RMSNorm(b))`. A map whose sides are no multiple of the transform's cell is padded
    by repeating its last row and column, and cropped after.

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.
        transform: a `FrequencyTransform`, or its name: "haar", "dct", or a wavelet of PyWavelets ("db2", "sym4", ...).
        levels: how often every band is split, for a transform given by name.
        layout: where the bands go: "mosaic" (one tile a subband), "interleaved" (the bands of one place side by side),
            "channel" (spread over the channels of each token; what the released DiMSUM weights need).
        scan: a `ScanOrder`, or the name of one, over the grid of subbands; None: one window a subband.
        mixer: a module called as `mixer(tokens, cond, order=order)`, (B, L, C) -> (B, L, C), which reads its tokens in
            the sequence `order` (L,) int64, or in turn where that is None; None: `MambaMixer(dim)`.

    Raises:
        ConfigError: an option has an unknown name or a value out of range.

    Source: Phung et al., "DiMSUM", 2024, section 4.1 and figure 2.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int | None = None,
        *,
        transform: str | FrequencyTransform = "haar",
        levels: int = 2,
        layout: Layout = "mosaic",
        scan: str | ScanOrder | None = None,
        mixer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ConfigError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
        self.dim, self.cond_dim, self.layout = dim, cond_dim, layout
        self.transform = frequency_transform(transform, levels) if isinstance(transform, str) else transform
        if scan is None:
            scan = subband_scan(self.transform)
        self.scan = scan_order(scan) if isinstance(scan, str) else scan
        self.step = GatedMamba(dim, cond_dim, mixer)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Mix the subbands.

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
        bands = self.transform.to_map(pad_to_multiple(x, self.transform.side), self.layout)
        grid = (bands.shape[1], bands.shape[2])
        order = None if self.scan.is_identity else self.scan.permutation(*grid, device=x.device)
        tokens = self.step(bands.flatten(1, 2), cond, order)
        return self.transform.from_map(tokens.unflatten(1, grid), self.layout)[:, :height, :width]


def subband_scan(transform: FrequencyTransform, *, transpose: bool = False) -> ScanOrder:
    """The window order whose windows have the size of one subband; `transpose`: column-major throughout."""
    return scan_order("window", tiles=transform.side, transpose=transpose)
