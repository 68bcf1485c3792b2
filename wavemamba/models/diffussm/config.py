"""What a DiffuSSM is made of."""

from __future__ import annotations

from dataclasses import dataclass

from wavemamba.models.config import PatchConfig, expect, expect_whole
from wavemamba.scans import scan_order


@dataclass(frozen=True, kw_only=True)
class DiffuSSMConfig(PatchConfig):
    """Options of a DiffuSSM; checks itself.

    Raises:
        ConfigError: a value is out of its range.
    """

    patch_size: int = 1
    """Side of what one step of a scan reads, in pixels; 1: a scan walks every pixel of the image or latent."""
    dim: int = 1152
    """Width C of a token, a multiple of 4."""
    depth: int = 29
    """Blocks."""
    shorten: int = 2
    """M, how many neighbouring steps of a row share a token between the scans; a divisor of 2 C."""
    class_dropout: float = 0.1
    """Probability in [0, 1) that training replaces a label by the null class; 0: no null class."""
    scan: str = "raster"
    """The order that the scans walk, forwards and backwards: any order by name."""
    d_state: int = 64
    """State size N of the scans, even."""

    def __post_init__(self) -> None:
        """Check every value."""
        expect_whole(self, 1, "shorten", "patch_size")
        super().__post_init__()
        expect_whole(self, 1, "d_state")
        expect("d_state", self.d_state, lambda v: v % 2 == 0, "an even number")
        expect("shorten", self.shorten, lambda v: 2 * self.dim % v == 0, f"a divisor of 2 * dim = {2 * self.dim}")
        object.__setattr__(self, "scan", scan_order(self.scan).name)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(rows, columns) of pixels in a token: M steps of a row."""
        return self.patch_size, self.patch_size * self.shorten

    @property
    def learns_positions(self) -> bool:
        """Whether the positions are trained: they are not."""
        return False
