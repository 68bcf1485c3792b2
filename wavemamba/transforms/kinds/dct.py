"""The discrete cosine transform of blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.transforms.bank_transform import MAKERS, BankTransform
from wavemamba.transforms.filter_bank import BANKS, Bank, filter_axes, find_bank, unfilter_axes
from wavemamba.transforms.registry import register_transform


@dataclass(frozen=True)
class BlockDCT(BankTransform):
    """Orthonormal DCT-II of every `size x size` block; band `size * u + v` has vertical frequency u, horizontal v.

    Args:
        size: side of a block, >= 1.

    Raises:
        ConfigError: the side is no int >= 1.
    """

    size: int = 4
    _name: str = field(init=False, compare=False, repr=False)  # of its bank

    def __post_init__(self) -> None:
        """Check the side."""
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise ConfigError(f"size: expected a block's side, an int >= 1, got {self.size!r}")
        object.__setattr__(self, "_name", str(self.size))

    @property
    def side(self) -> int:
        """The block's side."""
        return self.size

    @property
    def recipe(self) -> tuple[str, str, int]:
        """The side."""
        return "dct", self._name, self.size

    def split_by(self, x: Tensor, *, dual: bool) -> Tensor:
        """The cosines as a filter bank along each axis, which is its own dual."""
        y = x.to(accumulation_dtype(x.dtype)).unsqueeze(3)
        bands = filter_axes(y, self._bank(y), 0).squeeze(5)  # (B, w, v, h, u, C)
        return bands.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).to(x.dtype)

    def merge_by(self, bands: Tensor, *, dual: bool) -> Tensor:
        """The adjoint of the same bank."""
        y = bands.to(accumulation_dtype(bands.dtype)).unflatten(3, (self.size, self.size))
        return unfilter_axes(y.permute(0, 2, 4, 1, 3, 5).unsqueeze(5), self._bank(y), 0).squeeze(3).to(bands.dtype)

    def _bank(self, like: Tensor) -> Tensor:
        return find_bank("dct", self._name, like, inverse=False)


def _dct_bank(name: str, inverse: bool) -> Bank:
    size = int(name)
    steps = np.arange(size)
    bank = np.cos(math.pi / size * steps[:, None] * (steps + 0.5)) * math.sqrt(2 / size)
    bank[0] /= math.sqrt(2)
    return bank


BANKS["dct"] = _dct_bank
MAKERS["dct"] = lambda name, size: BlockDCT(size)
register_transform("dct", lambda levels: BlockDCT(2**levels))
