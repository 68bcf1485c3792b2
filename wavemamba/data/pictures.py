"""Image datasets whose examples are pure functions of an index and a generator."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from wavemamba.data.latent_shards import INDEX_FILE, LatentShards
from wavemamba.errors import ConfigError, DataError
from wavemamba.seeds import generator_for

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class ExampleSource(Protocol):
    """What training reads: images or latents, with the classes that they belong to.

    Attributes:
        classes: names of the classes, in the order of their numbers.
        shape: `(channels, height, width)` of every example.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Example `index`, augmented by draws from `generator`; without one, as it is.

        Returns:
            A float32 tensor of `shape` and the class number.
        """
        ...


class Digits:
    """Scikit-learn's 1,797 handwritten digits, `(1, 8, 8)` in [-1, 1] (its 0..16 divided by 8, minus 1).

    Shipped inside the scikit-learn package: nothing is downloaded. Never mirrored, a mirrored digit is another sign.
    """

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # ships no types

        bunch = load_digits()
        self.images = torch.from_numpy(bunch.images.astype(np.float32))[:, None] / 8.0 - 1.0
        self.labels = torch.from_numpy(bunch.target.astype(np.int64))
        self.classes = tuple(str(digit) for digit in range(10))
        self.shape = (1, 8, 8)

    def __len__(self) -> int:
        return len(self.images)

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Image `index` and its digit; `generator` is not drawn from."""
        return self.images[index], int(self.labels[index])


class ImageFolder:
    """The images of a folder, each sub-folder one class, in [-1, 1].

    A folder which holds images and no sub-folder is one class. Images are turned upright (EXIF), scaled so that the
    shorter side fits (bicubic, antialiased) and cropped to the centre.

    Args:
        folder: where the images are; sub-folders are searched to any depth.
        size: side of the square that examples have, in pixels.
        channels: 3 (RGB) or 1 (grey).
        mirror: flip every second image left to right, by a draw from the example's generator.

    Raises:
        DataError: the folder is missing or holds no image.
        ConfigError: `channels` is neither 1 nor 3.
    """

    def __init__(self, folder: str | Path, size: int, *, channels: int = 3, mirror: bool = False) -> None:
        if channels not in (1, 3):
            raise ConfigError(f"channels: expected 1 (grey) or 3 (RGB), got {channels}")
        self.folder = Path(folder)
        self.mirror = mirror
        self.shape = (channels, size, size)
        self.classes, self.files = _list_images(self.folder)

    def __len__(self) -> int:
        return len(self.files)

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Image `index` and its class; mirrored by a draw from `generator` where the folder was opened so.

        Raises:
            DataError: the file cannot be read as an image.
        """
        path, label = self.files[index]
        pixels = read_image(path, self.shape[1], self.shape[0])
        if self.mirror and generator is not None and torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(-1)
        return pixels, label


def fingerprint(source: ImageFolder) -> str:
    """A hash of the names and classes of a folder's images, in order: another one where a file came or went."""
    names = "\n".join(f"{label} {path.relative_to(source.folder)}" for path, label in source.files)
    return hashlib.sha256(names.encode()).hexdigest()


class Part:
    """Some examples of a source.

    Args:
        source: all of them.
        indices: (n,) int64, which ones and in what order.
    """

    def __init__(self, source: ExampleSource, indices: Tensor) -> None:
        self.source = source
        self.indices = indices
        self.classes = source.classes
        self.shape = source.shape

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Example `indices[index]` of the source."""
        return self.source.example(int(self.indices[index]), generator)


def hold_out(source: ExampleSource, fraction: float, seed: int) -> tuple[ExampleSource, ExampleSource]:
    """Split a source into what is trained on and a random `fraction` that is not.

    Raises:
        ConfigError: a fraction outside [0, 1), or one that leaves nothing to train on.
    """
    held = round(len(source) * fraction)
    if not 0 <= fraction < 1 or held >= len(source):
        raise ConfigError(f"holdout: expected a fraction in [0, 1) that leaves examples to train on, got {fraction}")
    order = torch.randperm(len(source), generator=generator_for(seed, "hold out"))
    return Part(source, order[held:]), Part(source, order[:held])


def open_source(
    data: str, *, size: int = 256, channels: int = 3, mirror: bool = False, verify: bool = False
) -> ExampleSource:
    """Open what the `--data` option of the examples names.

    Args:
        data: "digits", a folder of latent shards (it holds `index.json`), or a folder of images.
        size: side of images, in pixels; digits and latents have their own.
        channels: channels of images.
        mirror: flip images or take mirrored latents half of the time.
        verify: compare latent shards with their checksums.

    Raises:
        DataError: there is nothing usable.
        ConfigError: digits were to be mirrored.
    """
    if data == "digits":
        if mirror:
            raise ConfigError("mirror: expected it off for digits, a mirrored digit is another sign")
        return Digits()
    if (Path(data) / INDEX_FILE).is_file():
        return LatentShards(data, mirror=mirror, verify=verify)
    return ImageFolder(data, size, channels=channels, mirror=mirror)


def read_image(path: Path, size: int, channels: int) -> Tensor:
    """One image file as a `(channels, size, size)` float32 tensor in [-1, 1].

    Raises:
        DataError: the file is no image, or damaged; its path is named.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: expected a readable image, got {type(error).__name__}: {error}; replace or remove the file"
        ) from error
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    # reducing_gap shrinks large photographs by whole factors first; at 3 the result is nearly the one-step bicubic.
    image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    left, top = (width - size) // 2, (height - size) // 2
    array = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32)
    return torch.from_numpy(array.reshape(size, size, channels)).permute(2, 0, 1).contiguous() / 127.5 - 1.0


def _list_images(folder: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images, there is none; check the path")
    subfolders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    roots = subfolders or [folder]
    found = [
        sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        for root in roots
    ]
    kept = [(root.name, paths) for root, paths in zip(roots, found, strict=True) if paths]
    if not kept:
        raise DataError(
            f"{folder}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), one sub-folder a class, found none"
        )
    classes = tuple(name for name, _ in kept)
    return classes, [(path, label) for label, (_, paths) in enumerate(kept) for path in paths]
