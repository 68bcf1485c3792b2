"""A picture file as a tensor: every mode scaled by its range, upright, on a ground, cropped, then resized."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor
from torch import Tensor

from wavemamba.errors import ConfigError, DataError

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _SAMPLE_FORMAT = 258, 339  # of TIFF
Box = tuple[float, float, float, float]
Region = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class PictureView:
    """How pictures become tensors.

    The largest centred rectangle of the wanted shape is cut out and resized to `size`, bicubic and antialiased. Of EXIF
    the orientation alone is read. Of files with several pictures the first is taken.

    Args:
        size: side of the square, or (height, width), in pixels.
        channels: 3 (RGB) or 1 (grey).
        mirror: flip every second picture left to right, by a draw from the example's generator.
        background: colour that lies under transparent pictures, a name or `#rrggbb`.
        value_range: the numbers that are black and white in pictures of more than 8 bits. None: 0 to 65535 for 16 bits;
            0 to 1 or 0 to 255 for floats, 0 to 255 or 0 to 65535 for 32-bit integers, the first that holds all numbers
            of a picture, else the smallest and largest number of the picture.
        reduce: large pictures are first averaged over whole factors, JPEGs while they are decoded, which leave at least
            this many times the wanted side for the bicubic: fast, and within 40 dB PSNR of the bicubic in one step on
            photographs. `math.inf`: in one step.

    Raises:
        ConfigError: a wrong value.
    """

    size: int | tuple[int, int] = 256
    channels: int = 3
    mirror: bool = False
    background: str = "white"
    value_range: tuple[float, float] | None = None
    reduce: float = 1.7

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"channels: expected 1 (grey) or 3 (RGB), got {self.channels}")
        sides = tuple(self.size) if isinstance(self.size, (list, tuple)) else (self.size,)
        if len(sides) not in (1, 2) or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
            raise ConfigError(f"size: expected a side in pixels or (height, width), >= 1, got {self.size!r}")
        try:
            ImageColor.getcolor(self.background, "RGB")
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"background: expected a colour name or '#rrggbb', got {self.background!r} ({error})"
            ) from error
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ConfigError(f"value_range: expected (low, high) with low < high, got {self.value_range!r}")

        if not self.reduce >= 1:
            raise ConfigError(f"reduce: expected a number >= 1, got {self.reduce!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of the tensors."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, height, width

    def read(self, file: str | Path | bytes, name: str, generator: torch.Generator | None = None) -> Tensor:
        """A picture file as a float32 tensor of `shape` in [-1, 1], mirrored by a draw from `generator`.

        Args:
            file: a path, or the file's content.
            name: of the file, for the error.
            generator: of the draw; None: never mirrored.

        Raises:
            DataError: the file is no picture, or damaged.
        """
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
                pixels = self._pixels(opened)
        # Decoders of damaged files raise whatever comes up: struct.error, IndexError, zlib.error, MemoryError, ...
        except Exception as error:
            raise DataError(
                f"{name}: expected a readable image, got {type(error).__name__}: {error}; replace or remove it, or "
                "leave such files out with skip_unreadable; verify='all' (--verify-data all) lists all of them first"
            ) from error
        return self.mirrored(torch.from_numpy(pixels), generator)

    def mirrored(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        """The picture, flipped left to right by a draw from `generator` where the view mirrors."""
        if self.mirror and generator is not None:
            draw = torch.rand((), generator=generator, dtype=torch.float32, device="cpu")
            return pixels.flip(-1) if draw < 0.5 else pixels
        return pixels

    def _pixels(self, opened: Image.Image) -> NDArray[np.float32]:
        """(channels, height, width) in [-1, 1]."""
        _, height, width = self.shape
        turn = _TURNS.get(_orientation(opened))
        if turn in (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE,
                    Image.Transpose.ROTATE_90):  # fmt: skip
            height, width = width, height
        # The picture's extent in its own pixels; JPEG's reduction ends in the middle of one.
        extent = (float(opened.width), float(opened.height))
        if self.reduce < math.inf and opened.format in ("JPEG", "MPO") and opened.mode in ("L", "RGB"):
            scale = self.reduce * max(height / opened.height, width / opened.width)
            wanted = (max(1, int(opened.width * scale)), max(1, int(opened.height * scale)))
            drafted = opened.draft("L" if self.channels == 1 else opened.mode, wanted)
            extent = drafted[1][2:] if drafted else extent
        box = _centre(extent, (width, height))
        image, box = self._plain(opened, box, _surroundings(box, (width, height), opened.size))
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=self.reduce)
        if turn is not None:
            image = image.transpose(turn)
        image = self._on_ground(image)
        values = np.array(image, dtype=np.float32)
        if image.mode == "F":
            values = np.repeat(np.clip(values, 0.0, 1.0)[..., None], self.channels, axis=2) * 2.0 - 1.0
        else:
            values = values.reshape(*values.shape[:2], -1) / 127.5 - 1.0
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def _plain(self, image: Image.Image, box: Box, around: Region) -> tuple[Image.Image, Box]:
        """What lies around the box in a mode whose numbers can be averaged, and the box there.

        The modes are L, RGB, RGBA, or F in [0, 1]. What is cut away is never converted: it may be most of the picture.
        """
        left, top, right, bottom = around
        box = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
        if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;"):
            values, low, high = self._numbers(image)
            unit = (values[top:bottom, left:right].astype(np.float64) - low) / (high - low)
            if not np.isfinite(unit).all():
                raise ValueError("it holds NaN or infinite numbers")
            return Image.fromarray(np.clip(unit, 0.0, 1.0).astype(np.float32)), box
        image = image.crop(around)
        if image.mode == "La":
            image = image.convert("LA")
        if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            return image.convert("RGBA"), box
        return image.convert("L" if image.mode in ("1", "L") or self.channels == 1 else "RGB"), box

    def _numbers(self, image: Image.Image) -> tuple[NDArray[Any], float, float]:
        """The numbers of a picture of more than 8 bits, and those that are black and white."""
        values = np.asarray(image)
        tags: Any = getattr(image, "tag_v2", {})
        if image.mode == "I" and tags.get(_BITS) in (32, (32,)) and tags.get(_SAMPLE_FORMAT, 1) in (1, (1,)):
            values = values.view(np.uint32)  # unsigned ones, which Pillow reads as signed
        if self.value_range is not None:
            return values, *self.value_range
        if image.mode.startswith("I;") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # never wider
            return values, 0.0, 65535.0
        low, high = float(values.min()), float(values.max())
        for top in (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0):
            if low >= 0.0 and high <= top:
                return values, 0.0, top
        return values, low, high if high != low else low + 1.0

    def _on_ground(self, image: Image.Image) -> Image.Image:
        if image.mode == "RGBA":
            ground = Image.new("RGBA", image.size, ImageColor.getcolor(self.background, "RGBA"))
            image = Image.alpha_composite(ground, image)
        return image if image.mode == "F" else image.convert("L" if self.channels == 1 else "RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing about the picture, which is taken as it lies
        return 1


def _centre(size: tuple[float, float], wanted: tuple[int, int]) -> Box:
    """The part of a picture of `size` that is left when it is scaled to cover `wanted` and cropped to its centre.

    The same grid of pixels as scaling all of it and cropping whole pixels then, but of bounded size.
    """
    (w, h), (width, height) = size, wanted
    scale = max(width / w, height / h)
    scaled_w, scaled_h = max(width, round(w * scale)), max(height, round(h * scale))
    left, top = (scaled_w - width) // 2, (scaled_h - height) // 2
    fx, fy = w / scaled_w, h / scaled_h
    return left * fx, top * fy, min(w, (left + width) * fx), min(h, (top + height) * fy)


def _surroundings(box: Box, wanted: tuple[int, int], size: tuple[int, int]) -> Region:
    """The pixels that the bicubic looks at for a box of a picture of `size`, and some more."""
    margins = [math.ceil(4 * max(1.0, (box[i + 2] - box[i]) / wanted[i])) for i in (0, 1)]
    left, top = (max(0, math.floor(box[i]) - margins[i]) for i in (0, 1))
    right, bottom = (min(size[i], math.ceil(box[i + 2]) + margins[i]) for i in (0, 1))
    return left, top, right, bottom
