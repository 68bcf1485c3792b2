"""The Haar packet transform, whose maps are one fused kernel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wavemamba.checks import expect_levels
from wavemamba.ops.haar import Layout, from_haar_map, haar_analysis, haar_synthesis, to_haar_map
from wavemamba.transforms.base import FrequencyTransform
from wavemamba.transforms.registry import MOST_LEVELS, register_transform


@dataclass(frozen=True)
class HaarPacket(FrequencyTransform):
    """Orthonormal Haar packet transform.

    Args:
        levels: number of times that every band is split, 0 to 10.
    """

    levels: int = 2

    def __post_init__(self) -> None:
        """Check the levels."""
        expect_levels(self.levels, MOST_LEVELS)

    @property
    def side(self) -> int:
        """`2**levels`."""
        return int(2**self.levels)

    def split(self, x: Tensor) -> Tensor:
        """See `haar_analysis`."""
        return haar_analysis(x, self.levels)

    def merge(self, bands: Tensor) -> Tensor:
        """See `haar_synthesis`."""
        return haar_synthesis(bands, self.levels)

    def to_map(self, x: Tensor, layout: Layout) -> Tensor:
        """See `to_haar_map`."""
        return to_haar_map(x, self.levels, layout)

    def from_map(self, x: Tensor, layout: Layout) -> Tensor:
        """See `from_haar_map`."""
        return from_haar_map(x, self.levels, layout)


register_transform("haar", HaarPacket)
