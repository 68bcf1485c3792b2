"""WebDataset tar shards, read at random through an index of where every sample lies."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import IO

import torch
from PIL.ContainerIO import ContainerIO
from torch import Tensor

from wavemamba.data.base import classes_of, digest_of, numbered_classes, shown
from wavemamba.data.fingerprints import content_digest
from wavemamba.data.picture_source import PictureSource
from wavemamba.data.pictures import PictureView
from wavemamba.data.registry import register_source
from wavemamba.data.tar_index import indexed
from wavemamba.data.verify import every
from wavemamba.errors import DataError

_MIXED = 8
"""Shards whose samples are shuffled among one another."""


class TarShards(PictureSource):
    """Pictures in WebDataset tar files: members of one name and several suffixes are one sample.

    A sample is a picture (`.jpg`, `.png`, ...) and, where there are classes, a `label` member (`.cls`): a number, or
    the name of a class. Other members and hidden names are counted and left out. The headers of a shard are read once,
    without the pictures; what they say is kept in `.wavemamba-index` beside the shards, where that can be written. A
    sample is then read by its place, so that a resumed run reads nothing twice.

    The order of an epoch shuffles the shards, and the samples within eight shards that follow one another: what is read
    at a time lies in few files.

    Args:
        shards: the tar files, uncompressed, in the order that numbers the samples.
        view: how pictures become tensors.
        image: suffix of the member that is the picture, "jpg" or "left.png"; None: the one picture there is.
        label: suffix of the member that holds the class; None: all samples are one class.
        classes: names of the classes. None: the numbers 0 ... largest, or the names that occur, sorted.

    Raises:
        DataError: a shard is missing, cut, damaged or compressed, holds no picture, or labels are missing or no class.
    """

    def __init__(
        self,
        shards: Sequence[str | Path],
        view: PictureView | None = None,
        *,
        image: str | None = None,
        label: str | None = "cls",
        classes: Sequence[str] | None = None,
    ) -> None:
        self.paths = [Path(shard) for shard in shards]
        if not self.paths:
            raise DataError("shards: expected at least one tar file, got none")
        self.view = view or PictureView()
        self.shape = self.view.shape
        found = every(lambda path: indexed(path, image, label), self.paths)
        self.lengths = [len(shard.names) for shard in found]
        self.skipped = sum((Counter(shard.skipped) for shard in found), Counter[str]())
        if not sum(self.lengths):
            raise DataError(f"{shown(self.paths[0])}: expected pictures in the tar files, found none{self._left_out()}")
        places = [place for shard in found for place in zip(shard.starts, shard.sizes, strict=True)]
        self._places = torch.tensor(places, dtype=torch.int64, device="cpu")
        self._names = ["\n".join(shard.names) for shard in found]
        self._ends = torch.tensor(self.lengths, dtype=torch.int64, device="cpu").cumsum(0)
        written = [text for shard in found for text in shard.labels]
        self.classes, numbers = self._numbered(written, classes)
        self.labels = torch.tensor(numbers, dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        return len(self._places)

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Sample `index` and its class; mirrored by a draw from `generator` where the view mirrors.

        Raises:
            DataError: the shard was cut or taken away, or the picture cannot be read.
        """
        shard, name = self._place(index)
        start, size = self._places[index].tolist()
        try:
            with self.paths[shard].open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{name}: expected a tar file that can be read ({error})") from error
        if len(data) != size:
            raise DataError(f"{name}: expected {size} bytes, got {len(data)}: the tar file was cut; fetch it again")
        return self.view.read(data, name, generator), int(self.labels[index])

    @contextlib.contextmanager
    def opened(self, index: int) -> Iterator[IO[bytes]]:
        """The part of a shard that is picture `index`."""
        start, size = self._places[index].tolist()
        with self.paths[self._place(index)[0]].open("rb") as file:
            yield ContainerIO(file, start, size)

    def epoch_order(self, generator: torch.Generator) -> Tensor:
        """Shards in random order, and samples in random order within eight shards that follow one another."""
        shards = torch.randperm(len(self.paths), generator=generator, dtype=torch.int64, device="cpu").tolist()
        ends, order = self._ends.tolist(), []
        for first in range(0, len(shards), _MIXED):
            some = torch.cat(
                [torch.arange(ends[i] - self.lengths[i], ends[i], device="cpu") for i in shards[first : first + _MIXED]]
            )
            order.append(some[torch.randperm(len(some), generator=generator, dtype=torch.int64, device="cpu")])
        return torch.cat(order)

    def fingerprint(self) -> str:
        """Of the samples' names, labels and places, and of the shards' content, see `content_digest`."""
        labels = self.labels.numpy().tobytes()
        return digest_of(json.dumps(self.classes), *self._names, labels, content_digest(self.paths))

    def summary(self) -> str:
        """Samples, shards, classes, what was left out."""
        where = shown(self.paths[0].parent)
        shards = f"{len(self.paths):,} tar shards"
        return f"{where}: {len(self):,} images in {shards} of {classes_of(self)}{self._left_out()}"

    def _left_out(self) -> str:
        words = ", ".join(f"{count:,} {what}" for what, count in sorted(self.skipped.items()) if count)
        return f"; left out: {words}" if words else ""

    def _place(self, index: int) -> tuple[int, str]:
        """Number of the shard, and the sample's name in messages."""
        shard = int(torch.searchsorted(self._ends, index, right=True))
        row = index - int(self._ends[shard]) + self.lengths[shard]
        return shard, f"{shown(self.paths[shard])}: {self._names[shard].split(chr(10))[row]}"

    def _numbered(self, written: list[str | None], classes: Sequence[str] | None) -> tuple[tuple[str, ...], list[int]]:
        """Class names, and the class of every sample."""
        without = [index for index, text in enumerate(written) if text is None]
        if len(without) == len(written):
            if classes is not None and len(classes) != 1:
                raise DataError(
                    f"classes: expected a label with every sample for {len(classes)} classes, there are none"
                )
            return tuple(classes or ("all",)), [0] * len(written)
        if without:
            name = self._place(without[0])[1]
            raise DataError(
                f"{name}: expected a label, {len(without)} of {len(written)} samples have none; label=None takes all "
                "samples as one class"
            )
        texts = [text or "" for text in written]
        if classes is None and "" in texts:
            raise DataError(
                f"{self._place(texts.index(''))[1]}: expected a number or a name as label, got an empty one"
            )
        if all(text.isdecimal() for text in texts):
            numbers = [int(text) for text in texts]
            name = self._place(numbers.index(max(numbers)))[1]
            names = tuple(classes) if classes is not None else numbered_classes(max(numbers), name)
            if max(numbers) >= len(names):
                raise DataError(
                    f"{name}: expected a label below {len(names)}, the number of classes, got {max(numbers)}"
                )
            return names, numbers
        names = tuple(classes) if classes is not None else tuple(sorted({*texts}))
        if len({*names}) != len(names):
            raise DataError(f"classes: expected every name once, as labels are names, got {classes!r}")
        table = {name: number for number, name in enumerate(names)}
        for index, text in enumerate(texts):
            if text not in table:
                raise DataError(f"{self._place(index)[1]}: expected one of the {len(names)} classes, got {text!r}")
        return names, [table[text] for text in texts]


def open_webdataset(
    what: str, *, view: PictureView, image: str | None = None, label: str = "cls", classes: Sequence[str] | None = None
) -> TarShards:
    """Open tar shards.

    Args:
        what: a folder, all `.tar` files in it; one file; a pattern with `*`, or with `{000..099}`.
        view: how pictures become tensors.
        image: see `TarShards`.
        label: see `TarShards`; "none": all samples are one class.
        classes: see `TarShards`.

    Raises:
        DataError: there is no shard, or one is unusable.
    """
    return TarShards(shard_paths(what), view, image=image, label=None if label == "none" else label, classes=classes)


def shard_paths(what: str) -> list[Path]:
    """The tar files that a folder, a pattern with `*` or one with `{000..099}` names.

    Raises:
        DataError: none, or one of a range is missing.
    """
    path = Path(what)
    if path.is_dir():
        paths = sorted(entry for entry in path.iterdir() if entry.suffix == ".tar" and not entry.name.startswith("."))
    elif path.is_file():
        paths = [path]
    else:
        paths = [Path(found) for name in _braces(what) for found in (sorted(glob(name)) if has_magic(name) else [name])]
    if not paths:
        raise DataError(f"{shown(what)}: expected tar files, found none; check the path")
    return paths


def _braces(pattern: str) -> list[str]:
    """`a-{08..10}.tar` as three names."""
    before, brace, rest = pattern.partition("{")
    inside, closing, after = rest.partition("}")
    first, dots, last = inside.partition("..")
    if not (brace and closing and dots and first.isdecimal() and last.isdecimal()):
        return [pattern]
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [f"{before}{number}{tail}" for number in numbers for tail in _braces(after)]


def _holds_tars(path: Path) -> bool:
    if path.is_dir():
        return any(entry.name.endswith(".tar") and not entry.name.startswith(".") for entry in os.scandir(path))
    return path.suffix == ".tar"


register_source("webdataset", open_webdataset, claims=_holds_tars, about="a folder of WebDataset .tar shards")
