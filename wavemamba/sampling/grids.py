"""Grids of images with labels, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from wavemamba.checks import expect_size
from wavemamba.errors import ShapeError

if TYPE_CHECKING:
    from PIL import Image


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes, rounded and clipped."""
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()


def picture_of(pixels: Tensor) -> Image.Image:
    """A picture of bytes (c, h, w) for Pillow: grey, or its first three channels."""
    from PIL import Image

    if len(pixels) < 3:
        return Image.fromarray(pixels[0].numpy())
    return Image.fromarray(np.ascontiguousarray(pixels[:3].permute(1, 2, 0).numpy()))


def image_grid(
    images: Tensor,
    columns: int,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    tile: int = 0,
    gap: int = 2,
) -> Image.Image:
    """Images in rows of `columns`, with labels to the left and above.

    Args:
        images: (n, c, h, w) in [-1, 1], with 1 (grey) or 3 (RGB) channels; of any other number the first or first
            three are shown.
        columns: images a row.
        row_labels: one a row, or none; each is drawn in one line.
        column_labels: one a column, or none; likewise.
        tile: least side of an image in pixels; small ones are enlarged by whole factors without smoothing.
        gap: pixels between images.

    Raises:
        ShapeError: not a batch of images.
        ConfigError: `columns` is below 1.
    """
    from PIL import Image, ImageDraw, ImageFont

    if images.ndim != 4 or not len(images):
        raise ShapeError(f"images: expected (n, c, h, w) with n >= 1, got {tuple(images.shape)}")
    expect_size("columns", columns)
    beside, above = ([" ".join(str(label).splitlines()) for label in labels] for labels in (row_labels, column_labels))
    shown = to_uint8(images)
    factor = max(1, -(-tile // max(shown.shape[2:])))
    height, width = (int(side) * factor for side in shown.shape[2:])
    rows = -(-len(shown) // columns)
    letters = max(10, min(height // 3, 20))
    font = ImageFont.load_default(size=letters)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = max((int(measure.textlength(label, font=font)) + 10 for label in beside), default=0)
    top = int(letters * 1.6) if above else 0
    size = (left + columns * (width + gap) + gap, top + rows * (height + gap) + gap)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for index, pixels in enumerate(shown):
        row, column = divmod(index, columns)
        picture = picture_of(pixels).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(picture.convert("RGB"), (left + gap + column * (width + gap), top + gap + row * (height + gap)))
    for row, label in enumerate(beside):
        draw.text((left - 6, top + gap + (row + 0.5) * (height + gap)), label, "black", font, anchor="rm")
    for column, label in enumerate(above):
        draw.text((left + gap + (column + 0.5) * (width + gap), top / 2), label, "black", font, anchor="mm")
    return canvas
