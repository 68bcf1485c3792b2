"""Path families: eight ways each to walk a grid.

Path `2 k` starts at corner k (top left, top right, bottom left, bottom right) and runs along rows first, path `2 k + 1`
along columns first.

Source: sweep and zigzag: Hu et al., "ZigMa", 2024; the order of JPEG's coefficients.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wavemamba.errors import ConfigError
from wavemamba.scans.families.rows import raster, snake
from wavemamba.scans.registry import Permutation, register_scan_order


def sweep(H: int, W: int, path: int = 0) -> Permutation:
    """Line by line, every line in the same direction."""
    return _walk(raster, path, H, W)


def zigma(H: int, W: int, path: int = 0) -> Permutation:
    """Line by line, every second line backwards."""
    return _walk(snake, path, H, W)


def jpeg(H: int, W: int, path: int = 0) -> Permutation:
    """Along the diagonals, every second one backwards."""
    return _walk(_diagonals, path, H, W)


def _walk(lines: Callable[[int, int], Permutation], path: int, H: int, W: int) -> Permutation:
    corner, columns_first = divmod(path, 2)
    if columns_first:
        columns, rows = np.divmod(lines(W, H), H)
    else:
        rows, columns = np.divmod(lines(H, W), W)
    if corner & 1:
        columns = W - 1 - columns
    if corner & 2:
        rows = H - 1 - rows
    return rows * W + columns


def _diagonals(H: int, W: int) -> Permutation:
    rows, columns = np.divmod(raster(H, W), W)
    diagonal = rows + columns
    along = np.where(diagonal % 2 == 1, rows, columns)
    return np.lexsort((along, diagonal))


def _check(path: int = 0) -> None:
    if isinstance(path, bool) or path not in range(8):
        raise ConfigError(f"path: expected 0 to 7, got {path!r}")


for _family in (sweep, zigma, jpeg):
    register_scan_order(_family.__name__, _family, check=_check)
