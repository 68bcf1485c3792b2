"""Frequency transforms as objects: an image of tokens to subbands and back, exactly."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import pywt
import torch
from torch import Tensor

from wavemamba.checks import expect_levels
from wavemamba.constants import compiled_constant
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.ops.haar import Layout, from_haar_map, haar_analysis, haar_synthesis, to_haar_map
from wavemamba.ops.haar.layout import arrange_bands, collect_bands


class FrequencyTransform(ABC):
    """Splits a channels-last map into `side**2` bands, each `side` times smaller along both axes.

    Made by `frequency_transform(name, levels)`; a user's own transform subclasses this and is passed to a block.
    """

    @property
    @abstractmethod
    def side(self) -> int:
        """Tokens of a cell along each axis; sides of a map must be divisible by it."""

    @abstractmethod
    def analysis(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to bands (B, H / side, W / side, side**2, C)."""

    @abstractmethod
    def synthesis(self, bands: Tensor) -> Tensor:
        """Exact inverse of `analysis`."""

    def to_map(self, x: Tensor, layout: Layout) -> Tensor:
        """`analysis` divided by `side`, its bands put on the grid in a layout: (B, H, W, C) to (B, H, W, C)."""
        return arrange_bands(self.analysis(x) / self.side, self.side, layout)

    def from_map(self, x: Tensor, layout: Layout) -> Tensor:
        """Exact inverse of `to_map`."""
        return self.synthesis(collect_bands(x, self.side, layout)) * self.side


@dataclass(frozen=True)
class HaarPacket(FrequencyTransform):
    """Orthonormal Haar packet transform; its maps are one fused kernel.

    Args:
        levels: number of times that every band is split, >= 0.
    """

    levels: int = 2

    @property
    def side(self) -> int:
        """`2**levels`."""
        return int(2**self.levels)

    def analysis(self, x: Tensor) -> Tensor:
        """See `haar_analysis`."""
        return haar_analysis(x, self.levels)

    def synthesis(self, bands: Tensor) -> Tensor:
        """See `haar_synthesis`."""
        return haar_synthesis(bands, self.levels)

    def to_map(self, x: Tensor, layout: Layout) -> Tensor:
        """See `to_haar_map`."""
        return to_haar_map(x, self.levels, layout)

    def from_map(self, x: Tensor, layout: Layout) -> Tensor:
        """See `from_haar_map`."""
        return from_haar_map(x, self.levels, layout)


@dataclass(frozen=True)
class WaveletPacket(FrequencyTransform):
    """Packet transform with any discrete wavelet of PyWavelets, periodic at the borders.

    Args:
        wavelet_name: a name from `pywt.wavelist(kind="discrete")`, for example "db2", "sym4", "bior2.2".
        levels: number of times that every band is split, >= 0.
    """

    wavelet_name: str
    levels: int = 2

    @property
    def side(self) -> int:
        """`2**levels`."""
        return int(2**self.levels)

    def analysis(self, x: Tensor) -> Tensor:
        """One product with the periodic filter bank along each axis and level."""
        y = x.to(accumulation_dtype(x.dtype)).unsqueeze(3)
        for _ in range(self.levels):
            rows = self._bank(y.shape[1], y, inverse=False)
            columns = self._bank(y.shape[2], y, inverse=False)
            split = torch.einsum("rh,qw,bhwkc->brqkc", rows, columns, y)
            halves = split.unflatten(2, (2, -1)).unflatten(1, (2, -1))  # (B, row half, h, column half, w, K, C)
            y = halves.permute(0, 2, 4, 5, 3, 1, 6).flatten(3, 5)  # the column half is the digit's high bit
        return y.to(x.dtype)

    def synthesis(self, bands: Tensor) -> Tensor:
        """One product with the inverse filter bank along each axis and level."""
        y = bands.to(accumulation_dtype(bands.dtype))
        for _ in range(self.levels):
            halves = y.unflatten(3, (-1, 2, 2)).permute(0, 5, 1, 4, 2, 3, 6)
            split = halves.flatten(3, 4).flatten(1, 2)
            rows = self._bank(split.shape[1], y, inverse=True)
            columns = self._bank(split.shape[2], y, inverse=True)
            y = torch.einsum("hr,wq,brqkc->bhwkc", rows, columns, split)
        return y[:, :, :, 0].to(bands.dtype)

    def _bank(self, size: int, like: Tensor, *, inverse: bool) -> Tensor:
        return _filter_bank(self.wavelet_name, size, inverse, like.device).to(like.dtype)


@dataclass(frozen=True)
class BlockDCT(FrequencyTransform):
    """Orthonormal DCT-II of every `size x size` block; band `size * u + v` has vertical frequency u, horizontal v.

    Args:
        size: side of a block, >= 1.
    """

    size: int = 4

    @property
    def side(self) -> int:
        """The block's side."""
        return self.size

    def analysis(self, x: Tensor) -> Tensor:
        """Two products with the DCT matrix in every block."""
        dtype = accumulation_dtype(x.dtype)
        basis = _dct_basis(self.size, x.device).to(dtype)
        cells = x.to(dtype).unflatten(2, (-1, self.size)).unflatten(1, (-1, self.size))
        return torch.einsum("up,vq,bhpwqc->bhwuvc", basis, basis, cells).flatten(3, 4).to(x.dtype)

    def synthesis(self, bands: Tensor) -> Tensor:
        """The transposed products."""
        dtype = accumulation_dtype(bands.dtype)
        basis = _dct_basis(self.size, bands.device).to(dtype)
        blocks = bands.to(dtype).unflatten(3, (self.size, self.size))
        return torch.einsum("up,vq,bhwuvc->bhpwqc", basis, basis, blocks).flatten(3, 4).flatten(1, 2).to(bands.dtype)


_MOST_LEVELS = 10  # maps are padded to a multiple of 2**levels


def frequency_transform(name: str, levels: int = 2) -> FrequencyTransform:
    """Make a transform by name.

    Args:
        name: "haar", "dct" (blocks of side `2**levels`), or any discrete wavelet of PyWavelets ("db2", "sym4", ...).
        levels: number of splits, 0 to 10.

    Raises:
        ConfigError: the name or `levels` is not one of these.
    """
    expect_levels(levels, _MOST_LEVELS)
    if name == "haar":
        return HaarPacket(levels)
    if name == "dct":
        return BlockDCT(2**levels)
    if name in pywt.wavelist(kind="discrete"):
        return WaveletPacket(name, levels)
    raise ConfigError(f"transform: expected 'haar', 'dct' or a name from pywt.wavelist(kind='discrete'), got {name!r}")


def _bank_array(name: str, size: int, inverse: bool) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    half = size // 2
    columns = []
    for unit in np.eye(size):
        if inverse:
            columns.append(pywt.idwt(unit[:half], unit[half:], name, mode="periodization"))
        else:
            columns.append(np.concatenate(pywt.dwt(unit, name, mode="periodization")))
    return np.stack(columns, axis=1)


@torch.library.custom_op("wavemamba::filter_bank", mutates_args=())
def _filter_bank(name: str, size: int, inverse: bool, device: torch.device) -> Tensor:
    make = functools.partial(_bank_array, name, size, inverse)
    return compiled_constant(("filter bank", name, size, inverse), device, make)


@_filter_bank.register_fake
def _(name: str, size: int, inverse: bool, device: torch.device) -> Tensor:
    return torch.empty(size, size, dtype=torch.float64, device=device)


def _dct_basis(size: int, device: torch.device) -> Tensor:
    steps = torch.arange(size, dtype=torch.float64, device=device)
    basis = torch.cos(math.pi / size * steps[:, None] * (steps + 0.5)) * math.sqrt(2 / size)
    return torch.cat([basis[:1] / math.sqrt(2), basis[1:]])
