"""How the subbands of a packet transform are put back on an (H, W) grid, for any transform."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from torch import Tensor

from wavemamba.names import choose

Layout = Literal["channel", "interleaved", "mosaic"]
LAYOUTS: tuple[Layout, ...] = ("channel", "interleaved", "mosaic")

_PATTERNS = {
    "mosaic": ("b h w (p1 p2) c", "b (p1 h) (p2 w) c"),
    "interleaved": ("b h w (p1 p2) c", "b (h p1) (w p2) c"),
}


def choose_layout(layout: str) -> Layout:
    """The layout of this name, whatever its case."""
    name = choose("layout", layout, LAYOUTS)
    return next(known for known in LAYOUTS if known == name)


def arrange_bands(bands: Tensor, side: int, layout: str) -> Tensor:
    """Put bands on a grid.

    Args:
        bands: (B, h, w, side**2, C).
        side: tokens of a cell along each axis.
        layout: "mosaic", "interleaved" or "channel"; see `to_haar_map`.

    Returns:
        (B, side * h, side * w, C).
    """
    if layout == "channel":
        return rearrange(bands.flatten(3), "b h w (c p1 p2) -> b (h p1) (w p2) c", p1=side, p2=side)
    source, target = _PATTERNS[layout]
    return rearrange(bands, f"{source} -> {target}", p1=side, p2=side)


def collect_bands(grid: Tensor, side: int, layout: str) -> Tensor:
    """Inverse of `arrange_bands`: (B, H, W, C) -> (B, H / side, W / side, side**2, C)."""
    if layout == "channel":
        flat = rearrange(grid, "b (h p1) (w p2) c -> b h w (c p1 p2)", p1=side, p2=side)
        return flat.unflatten(3, (side * side, -1))
    source, target = _PATTERNS[layout]
    return rearrange(grid, f"{target} -> {source}", p1=side, p2=side)
