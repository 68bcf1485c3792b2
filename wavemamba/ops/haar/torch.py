"""Haar packet transform in vectorised PyTorch: one butterfly a level, any device, any number of levels."""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype
from wavemamba.ops.haar.layout import arrange_bands, collect_bands
from wavemamba.ops.haar.op import HaarInputs


def _butterfly(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Twice the 2x2 Haar transform, which is its own inverse: cell [[a, b], [c, d]] <-> LL, LH, HL, HH."""
    top, bottom, left, right = a + b, c + d, a - b, c - d
    return top + bottom, top - bottom, left + right, left - right


def run(inputs: HaarInputs) -> Tensor:
    """All cells at once; see `wavemamba.ops.haar` for the map and shapes."""
    x, levels, layout, scale, inverse = inputs
    side = 2**levels
    y = x.to(accumulation_dtype(x.dtype)) * (scale * 0.5**levels)  # first, so that no sum overflows before it
    if inverse:
        bands = collect_bands(y, side, layout)
        for _ in range(levels):
            ll, lh, hl, hh = bands.unflatten(3, (-1, 4)).unbind(4)
            a, b, c, d = _butterfly(ll, lh, hl, hh)
            cells = torch.stack([torch.stack([a, b], 3), torch.stack([c, d], 3)], 2)  # (B, h, 2, w, 2, K, C)
            bands = cells.flatten(3, 4).flatten(1, 2)
        return bands[:, :, :, 0].to(x.dtype)
    bands = y.unsqueeze(3)
    for _ in range(levels):
        cells = bands.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        (a, b), (c, d) = (row.unbind(3) for row in cells.unbind(2))
        bands = torch.stack(_butterfly(a, b, c, d), dim=4).flatten(3, 4)
    return arrange_bands(bands, side, layout).to(x.dtype)
