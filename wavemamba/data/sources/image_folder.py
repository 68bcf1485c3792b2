"""A folder of pictures, each sub-folder one class."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from wavemamba.data.base import classes_of, digest_of, shown
from wavemamba.data.fingerprints import content_digest
from wavemamba.data.picture_source import PictureSource
from wavemamba.data.pictures import PictureView
from wavemamba.data.registry import register_source
from wavemamba.errors import DataError
from wavemamba.names import choose

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LABELS = ("auto", "folders", "none")


@dataclass
class Found:
    """The pictures under a folder, and what else is there."""

    pictures: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


class ImageFolder(PictureSource):
    """The pictures of a folder, each sub-folder one class, in [-1, 1].

    Sub-folders are searched to any depth, links are followed. Names that begin with a dot are skipped at any depth.
    Examples are in the order of the classes' names, then of the files' paths.

    Args:
        folder: where the pictures are.
        view: how they become tensors.
        labels: "folders": each sub-folder is a class, pictures beside them are left out; "none": all pictures at any
            depth are one class; "auto": the one that the folder is laid out for.

    Raises:
        DataError: the folder is missing, holds no picture, or with "auto" holds pictures both beside and in its
            sub-folders.
        ConfigError: `labels` is none of these words.
    """

    def __init__(self, folder: str | Path, view: PictureView | None = None, *, labels: str = "auto") -> None:
        self.folder = Path(folder)
        self.view = view or PictureView()
        self.shape = self.view.shape
        labels = choose("labels", labels, LABELS)
        if not self.folder.is_dir():
            raise DataError(f"{shown(folder)}: expected a folder of images, there is none; check the path")
        try:
            beside, subfolders = _look_into(self.folder)
        except OSError as error:
            raise DataError(f"{shown(folder)}: expected a folder that can be read ({error})") from error
        inside = {name: found for name, found in subfolders.items() if found.pictures}
        self.skipped = sum((found.skipped for found in subfolders.values()), beside.skipped)
        self.skipped["sub-folders without images"] += len(subfolders) - len(inside)
        if labels == "auto":
            labels = "folders" if inside else "none"
            if inside and beside.pictures:
                count = sum(len(found.pictures) for found in inside.values())
                raise DataError(
                    f"{shown(folder)}: expected images either in the folder itself or in sub-folders that are "
                    f"classes, got {len(beside.pictures)} in itself and {count} in {len(inside)} sub-folders; move "
                    "them, or say labels='none' (all are one class) or labels='folders' (leave out those in itself)"
                )
        if labels == "none":
            every = [*beside.pictures, *(path for found in inside.values() for path in found.pictures)]
            groups = [(shown(self.folder.resolve().name) or "all", sorted(every))]
        else:
            groups = [(shown(name), found.pictures) for name, found in sorted(inside.items())]
            self.skipped["images beside the class folders"] += len(beside.pictures)
        self.files = [(path, label) for label, (_, paths) in enumerate(groups) for path in paths]
        if not self.files:
            raise DataError(
                f"{shown(folder)}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), one sub-folder a class, "
                f"found none{_skipped_words(self.skipped)}"
            )
        self.classes = tuple(name for name, _ in groups)

    def __len__(self) -> int:
        return len(self.files)

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Picture `index` and its class; mirrored by a draw from `generator` where the view mirrors.

        Raises:
            DataError: the file cannot be read as an image.
        """
        path, label = self.files[index]
        return self.view.read(path, shown(path), generator), label

    def opened(self, index: int) -> BufferedReader:
        """The file of picture `index`."""
        return self.files[index][0].open("rb")

    def fingerprint(self) -> str:
        """Of the files' names below the folder, their classes, sizes and content, see `content_digest`."""
        names = b"\n".join(b"%d %s" % (label, os.fsencode(path.relative_to(self.folder))) for path, label in self.files)
        return digest_of("\n".join(self.classes), names, content_digest([path for path, _ in self.files]))

    def summary(self) -> str:
        """Files, classes with their sizes, what was left out."""
        counts = Counter(label for _, label in self.files)
        sizes = ", ".join(f"{name} {counts[label]:,}" for label, name in enumerate(self.classes[:10]))
        more = f", and {len(self.classes) - 10} more" if len(self.classes) > 10 else ""
        classes = classes_of(self) if len(self.classes) == 1 else f"{len(self.classes)} classes ({sizes}{more})"
        return f"{shown(self.folder)}: {len(self):,} images of {classes}{_skipped_words(self.skipped)}"


def open_images(what: str, *, view: PictureView, labels: str = "auto") -> ImageFolder:
    """Open a folder of pictures, see `ImageFolder`."""
    return ImageFolder(what, view, labels=labels)


def _look_into(folder: Path) -> tuple[Found, dict[str, Found]]:
    """Pictures of the folder itself, and for every sub-folder those at any depth in it."""
    beside, subfolders = Found(), dict[str, Found]()
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            beside.skipped["hidden names"] += 1
        elif entry.is_dir():
            subfolders[entry.name] = found = Found()
            _walk(Path(entry.path), found, (os.stat(folder), os.stat(entry.path)))
            found.pictures.sort()
        else:
            _sort_in(Path(entry.path), entry.is_file(), beside)
    beside.pictures.sort()
    return beside, subfolders


def _walk(folder: Path, found: Found, above: tuple[os.stat_result, ...]) -> None:
    for entry in os.scandir(folder):
        path = Path(entry.path)
        if entry.name.startswith("."):
            found.skipped["hidden names"] += 1
        elif entry.is_dir():
            here = os.stat(path)
            if any(os.path.samestat(here, one) for one in above):
                found.skipped["links to a folder above"] += 1
            else:
                _walk(path, found, (*above, here))
        else:
            _sort_in(path, entry.is_file(), found)


def _sort_in(path: Path, is_file: bool, found: Found) -> None:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        found.skipped[f"{shown(path.suffix) or 'no suffix'} files"] += 1
    elif is_file:
        found.pictures.append(path)
    else:
        found.skipped["broken links"] += 1


def _skipped_words(skipped: Counter[str]) -> str:
    words = ", ".join(f"{count:,} {what}" for what, count in sorted(skipped.items()) if count)
    return f"; left out: {words}" if words else ""


def _holds_images(path: Path) -> bool:
    if not path.is_dir():
        return False
    beside = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    # Of links the class folders alone are followed here: a quick look must not run in circles.
    within = (Path(name) for entry in beside if entry.is_dir() for name in _names_within(entry))
    return any(name.suffix.lower() in IMAGE_SUFFIXES for name in itertools.chain(beside, within))


def _names_within(folder: Path) -> Iterator[str]:
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (name for name in files if not name.startswith("."))


register_source("images", open_images, claims=_holds_images, about="a folder of images, each sub-folder a class")
