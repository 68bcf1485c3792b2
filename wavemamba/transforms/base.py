"""What a frequency transform is, and the checks that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from wavemamba.checks import expect_floating, expect_shape
from wavemamba.errors import ShapeError
from wavemamba.ops.haar import Layout
from wavemamba.ops.haar.layout import arrange_bands, choose_layout, collect_bands


class FrequencyTransform(ABC):
    """Splits a channels-last map into `side**2` bands, each `side` times smaller along both axes.

    Made by `frequency_transform(name, levels)`. A transform of one's own defines `side`, `split` and `merge`. What is
    called is `analysis`, `synthesis`, `to_map` and `from_map`, which check their input and what came of it.
    """

    @property
    @abstractmethod
    def side(self) -> int:
        """Tokens of a cell along each axis, >= 1; sides of a map must be divisible by it."""

    @abstractmethod
    def split(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to bands (B, H / side, W / side, side**2, C)."""

    @abstractmethod
    def merge(self, bands: Tensor) -> Tensor:
        """Exact inverse of `split`."""

    def analysis(self, x: Tensor) -> Tensor:
        """Split a map into its bands.

        Args:
            x: (B, H, W, C), floating; H and W divisible by `side`.

        Returns:
            (B, H / side, W / side, side**2, C).

        Raises:
            ShapeError: a side is not divisible, or rank or dtype are wrong.
        """
        batch, height, width, channels = self._check_map(x)
        side = self.side
        bands = self.split(x)
        expected = (batch, height // side, width // side, side * side, channels)
        expect_shape(f"{type(self).__name__}.split", bands, expected, "(B, H / side, W / side, side**2, C)")
        return bands

    def synthesis(self, bands: Tensor) -> Tensor:
        """Exact inverse of `analysis`.

        Args:
            bands: (B, h, w, side**2, C), floating.

        Returns:
            (B, h * side, w * side, C).

        Raises:
            ShapeError: the number of bands, the rank or the dtype is wrong.
        """
        side = self.side
        expect_shape(
            "bands",
            bands,
            (None, None, None, side * side, None),
            "(B, h, w, side**2, C)",
            "pass what analysis returned",
        )
        expect_floating("bands", bands)
        if bands.shape[1] < 1 or bands.shape[2] < 1:
            raise ShapeError(f"bands: expected h, w >= 1, got {tuple(bands.shape)}; leave out what is empty")
        x = self.merge(bands)
        batch, height, width, _, channels = bands.shape
        expected = (batch, height * side, width * side, channels)
        expect_shape(f"{type(self).__name__}.merge", x, expected, "(B, h * side, w * side, C)")
        return x

    def to_map(self, x: Tensor, layout: Layout) -> Tensor:
        """`analysis` divided by `side`, its bands put on the grid in a layout: (B, H, W, C) to (B, H, W, C).

        Raises:
            ShapeError: as for `analysis`.
            ConfigError: the layout is unknown.
        """
        layout = choose_layout(layout)
        return arrange_bands(self.analysis(x) / self.side, self.side, layout)

    def from_map(self, x: Tensor, layout: Layout) -> Tensor:
        """Exact inverse of `to_map`: the same shapes, the same errors."""
        layout = choose_layout(layout)
        self._check_map(x)
        return self.synthesis(collect_bands(x, self.side, layout)) * self.side

    def _check_map(self, x: Tensor) -> tuple[int, int, int, int]:
        expect_shape("x", x, (None, None, None, None), "(B, H, W, C)", "channels come last")
        expect_floating("x", x)
        batch, height, width, channels = x.shape
        if height < 1 or width < 1 or height % self.side or width % self.side:
            raise ShapeError(
                f"x: expected sides divisible by {self.side} for {self!r}, got {(height, width)}; pad the map"
            )
        return batch, height, width, channels
