"""A Mamba over the subbands of an image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wavemamba.blocks.feed_forward import FeedForwardBlock
from wavemamba.blocks.mamba_step import GatedMamba
from wavemamba.blocks.spatial import expect_scan
from wavemamba.errors import ConfigError
from wavemamba.layers.norm import Norm
from wavemamba.names import choose
from wavemamba.ops.haar import Layout
from wavemamba.ops.haar.layout import choose_layout
from wavemamba.scans import ScanOrder, scan_order
from wavemamba.sizes import cut, holds_always
from wavemamba.transforms import FrequencyTransform, frequency_transform

BandScaling = Literal["mean", "orthonormal"]
BAND_SCALINGS: tuple[BandScaling, ...] = ("mean", "orthonormal")


def pad_to_multiple(x: Tensor, side: int) -> Tensor:
    """Repeat the last row and column until both sides of (B, H, W, C) are multiples of `side`."""
    for axis in (1, 2):
        size = x.shape[axis]
        padded = (size + side - 1) // side * side
        if not holds_always(padded == size):
            x = x.index_select(axis, torch.arange(padded, device=x.device).clamp(max=size - 1))
    return x


class WaveletMambaBlock(FeedForwardBlock):
    """One gated residual Mamba step over the frequency subbands of a map.

    With `b = T(x) / side`, T the transform with its bands put back on the grid:

        x' = T^-1(side * (b + gate * Mamba(b * (1 + scale) + shift))),    shift, scale, gate = Linear(SiLU(cond))

    With `cond_dim=None`: `b + Mamba(norm(b))`. With an MLP a feed-forward step on the subbands follows, before the
    inverse transform. A map whose sides are no multiple of the transform's cell is padded
    by repeating its last row and column, and cropped after.

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.
        transform: a `FrequencyTransform`, or its name: "haar", "dct", or a wavelet of PyWavelets ("db2", "sym4", ...).
        levels: how often every band is split, for a transform given by name.
        layout: where the bands go: "mosaic" (one tile a subband), "interleaved" (the bands of one place side by side),
            "channel" (spread over the channels of each token; what the released DiMSUM weights need).
        scaling: "mean": as above, which makes the lowest Haar band the mean of its cell; "orthonormal": `b = T(x)`.
        scan: a `ScanOrder`, or the name of one, over the grid of subbands; None: one window a subband.
        mixer: a `wavemamba.layers.Mixer`, called as `mixer(tokens, cond, order=order)`; None: `MambaMixer(dim)`.
        mlp: (..., C) -> (..., C), for a feed-forward step on the subbands; None: no such step.
        norm: "rms", "layer" or a function of the width that makes a norm, with `cond_dim=None` or `mlp` alone; None:
            "rms".
        channels_first: take and return (B, C, H, W).

    Raises:
        ConfigError: an option has an unknown name or a value out of range, or the mixer does not fit.

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
        scaling: BandScaling = "mean",
        scan: str | ScanOrder | None = None,
        mixer: nn.Module | None = None,
        mlp: nn.Module | None = None,
        norm: Norm | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__(dim, cond_dim, channels_first=channels_first)
        self.layout = choose_layout(layout)
        self.transform = frequency_transform(transform, levels) if isinstance(transform, str) else transform
        if not isinstance(self.transform, FrequencyTransform):
            raise ConfigError(
                "transform: expected a FrequencyTransform or the name of one, got "
                f"{type(transform).__name__}; see frequency_transform"
            )
        if self.transform is transform and levels != 2:
            raise ConfigError(
                f"levels: expected it in the transform {transform}, got {levels!r} beside it; leave it out"
            )
        self.scaling = choose("scaling", scaling, BAND_SCALINGS)
        self.scan = subband_scan(self.transform) if scan is None else expect_scan(scan)
        self.step = GatedMamba(dim, cond_dim, mixer, norm if mlp is None or cond_dim is None else None)
        if mlp is not None:
            self.add_feed_forward(mlp, norm or "rms")

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
        x = self.enter(x)
        self.check_cond(cond, x.shape[0])
        height, width = x.shape[1:3]
        bands = self._to_bands(pad_to_multiple(x, self.transform.side))
        grid = (bands.shape[1], bands.shape[2])
        tokens = self.step(bands.flatten(1, 2), cond, self.scan.order_for(*grid, device=x.device))
        bands = self.feed_forward(tokens.unflatten(1, grid), cond)
        return self.leave(cut(cut(self._from_bands(bands), 1, height), 2, width))

    def _to_bands(self, x: Tensor) -> Tensor:
        bands = self.transform.to_map(x, self.layout)
        return bands if self.scaling == "mean" else bands * self.transform.side

    def _from_bands(self, bands: Tensor) -> Tensor:
        bands = bands if self.scaling == "mean" else bands / self.transform.side
        return self.transform.from_map(bands, self.layout)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        scaling = "" if self.scaling == "mean" else f", scaling={self.scaling!r}"
        return f"{super().extra_repr()}, {self.transform}, layout={self.layout!r}{scaling}, scan={self.scan.name!r}"


def subband_scan(transform: FrequencyTransform, *, transpose: bool = False) -> ScanOrder:
    """The window order whose windows have the size of one subband; `transpose`: column-major throughout."""
    return scan_order("window", tiles=transform.side, transpose=transpose)
