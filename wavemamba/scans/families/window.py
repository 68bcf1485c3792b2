"""One window of tokens after the other."""

from __future__ import annotations

import numpy as np

from wavemamba.errors import ConfigError
from wavemamba.scans.families.rows import raster
from wavemamba.scans.registry import Permutation, register_scan_order


def window(H: int, W: int, window: int | tuple[int, int] | None = None, tiles: int | None = None) -> Permutation:
    """Row-major over windows and inside them; windows at the far edges are smaller where a side is not divisible.

    Args:
        H: rows.
        W: columns.
        window: a window's side, or its (height, width), in tokens.
        tiles: instead of `window`: cut each axis into so many windows.
    """
    if tiles is not None:
        window = (max(1, -(-H // tiles)), max(1, -(-W // tiles)))
    height, width = window if isinstance(window, tuple) else (window, window)
    assert height is not None
    assert width is not None
    rows, columns = np.divmod(raster(H, W), W)
    return np.lexsort((columns, rows, columns // width, rows // height))


def _check(window: int | tuple[int, int] | None = None, tiles: int | None = None) -> None:
    sizes = window if isinstance(window, tuple) else (window, window)
    fits = [len(sizes) == 2 and all(_is_size(size) for size in sizes), _is_size(tiles)]
    if fits != [tiles is None, window is None]:
        raise ConfigError(
            "window, tiles: expected one of them, a window's side or (height, width) >= 1 or a number of tiles >= 1, "
            f"got window = {window!r}, tiles = {tiles!r}"
        )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


register_scan_order("window", window, check=_check)
