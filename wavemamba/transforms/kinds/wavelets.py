"""Packet transforms with any exact discrete wavelet of PyWavelets."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pywt
from torch import Tensor

from wavemamba.checks import expect_levels
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.names import choose
from wavemamba.transforms.bank_transform import MAKERS, BankTransform
from wavemamba.transforms.filter_bank import BANKS, Bank, filter_axes, find_bank, unfilter_axes
from wavemamba.transforms.registry import MOST_LEVELS, register_transform

_EXACT = 1e-9


@dataclass(frozen=True)
class WaveletPacket(BankTransform):
    """Packet transform with a discrete wavelet, periodic at the borders.

    Args:
        wavelet_name: a name from `pywt.wavelist(kind="discrete")`, for example "db2", "sym4", "bior2.2".
        levels: number of times that every band is split, 0 to 10.

    Raises:
        ConfigError: the name is unknown, or the wavelet's filters do not invert exactly, as those of "dmey", which are
            cut off.
    """

    wavelet_name: str
    levels: int = 2

    def __post_init__(self) -> None:
        """Check that the wavelet exists and inverts."""
        expect_levels(self.levels, MOST_LEVELS)
        object.__setattr__(self, "wavelet_name", choose("wavelet", self.wavelet_name, _names()))
        error = _error_of(self.wavelet_name)
        if error > _EXACT:
            raise ConfigError(
                f"transform: expected a wavelet that inverts exactly, got {self.wavelet_name!r}, whose filters are cut "
                f"off and leave an error of {error:.0e}; choose another one, such as 'sym8'"
            )

    @property
    def side(self) -> int:
        """`2**levels`."""
        return int(2**self.levels)

    @property
    def recipe(self) -> tuple[str, str, int]:
        """The wavelet and the levels."""
        return "wavelet", self.wavelet_name, self.levels

    def split_by(self, x: Tensor, *, dual: bool) -> Tensor:
        """One filter bank along each axis and level."""
        y = x.to(accumulation_dtype(x.dtype)).unsqueeze(3)
        bank = find_bank("wavelet", self.wavelet_name, y, inverse=dual)
        for _ in range(self.levels):
            halves = filter_axes(y, bank, _first(bank))  # (B, w, column half, h, row half, K, C)
            y = halves.permute(0, 3, 1, 5, 2, 4, 6).flatten(3, 5)  # the column half is the digit's high bit
        return y.to(x.dtype)

    def merge_by(self, bands: Tensor, *, dual: bool) -> Tensor:
        """The adjoint of a filter bank along each axis and level."""
        y = bands.to(accumulation_dtype(bands.dtype))
        bank = find_bank("wavelet", self.wavelet_name, y, inverse=dual)
        for _ in range(self.levels):
            halves = y.unflatten(3, (-1, 2, 2)).permute(0, 2, 4, 1, 5, 3, 6)
            y = unfilter_axes(halves, bank, _first(bank))
        return y[:, :, :, 0].to(bands.dtype)


def _first(bank: Tensor) -> int:
    return 1 - bank.shape[1] // 2


def _names() -> list[str]:
    names: list[str] = pywt.wavelist(kind="discrete")
    return names


def _wavelet_bank(name: str, inverse: bool) -> Bank:
    wavelet = pywt.Wavelet(name)
    if inverse:
        return np.array([wavelet.rec_lo, wavelet.rec_hi])
    return np.array([wavelet.dec_lo[::-1], wavelet.dec_hi[::-1]])


@functools.lru_cache(maxsize=256)
def _error_of(name: str) -> float:
    # Of two neighbouring impulses: every other one is a shift of these by whole cells.
    size = 2 * pywt.Wavelet(name).dec_len
    impulses = np.eye(size)[:2]
    back = pywt.idwt(*pywt.dwt(impulses, name, mode="periodization"), name, mode="periodization")
    return float(abs(back - impulses).max())


BANKS["wavelet"] = _wavelet_bank
MAKERS["wavelet"] = WaveletPacket
for _name in _names():
    if _name != "haar":  # has kernels of its own
        register_transform(_name, functools.partial(WaveletPacket, _name))
