"""Orders that follow rows or columns."""

from __future__ import annotations

import numpy as np

from wavemamba.scans.registry import Permutation, register_scan_order


def raster(H: int, W: int) -> Permutation:
    """Row by row, left to right: the order of memory."""
    return np.arange(H * W, dtype=np.int64)


def column(H: int, W: int) -> Permutation:
    """Column by column, top to bottom."""
    return raster(H, W).reshape(H, W).T.ravel()


def reverse(H: int, W: int) -> Permutation:
    """Row by row, the last token first."""
    return raster(H, W)[::-1]


def snake(H: int, W: int) -> Permutation:
    """Row by row, every second row backwards: neighbouring steps are neighbouring tokens."""
    grid = raster(H, W).reshape(H, W)
    grid[1::2] = grid[1::2, ::-1].copy()
    return grid.ravel()


for _order in (raster, column, reverse, snake):
    register_scan_order(_order.__name__, _order)
