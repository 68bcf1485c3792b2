"""Haar packet transform, the definition: every band is a sum over the pixels of its cell."""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, autocast_off
from wavemamba.ops.haar.layout import arrange_bands, collect_bands
from wavemamba.ops.haar.op import HaarInputs


def packet_matrix(levels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The orthonormal transform of one cell: (4**levels bands, 2**levels rows, 2**levels columns)."""
    side = 2**levels
    matrix = torch.empty(side * side, side, side, dtype=dtype, device="cpu")
    for band in range(side * side):
        for row in range(side):
            for column in range(side):
                sign = 1.0
                for level in range(levels):  # level 0 splits neighbouring pixels, and is the leading digit
                    digit = band // 4 ** (levels - 1 - level) % 4
                    row_bit, column_bit = row >> level & 1, column >> level & 1
                    if digit & 1:  # LH, HH: high-pass down the rows
                        sign *= 1 - 2 * row_bit
                    if digit & 2:  # HL, HH: high-pass along the columns
                        sign *= 1 - 2 * column_bit
                matrix[band, row, column] = sign / side
    return matrix


def run(inputs: HaarInputs) -> Tensor:
    """One product with the cell matrix; see `wavemamba.ops.haar` for the map and shapes."""
    x, levels, layout, scale, inverse = inputs
    side = 2**levels
    dtype = accumulation_dtype(x.dtype)
    matrix = scale * packet_matrix(levels, dtype).to(x.device)
    with autocast_off(x.device):
        if inverse:
            bands = collect_bands(x.to(dtype), side, layout)
            cells = torch.einsum("bhwkc,kpq->bhpwqc", bands, matrix)
            return cells.flatten(3, 4).flatten(1, 2).to(x.dtype)
        cells = x.to(dtype).unflatten(2, (-1, side)).unflatten(1, (-1, side))
        return arrange_bands(torch.einsum("bhpwqc,kpq->bhwkc", cells, matrix), side, layout).to(x.dtype)
