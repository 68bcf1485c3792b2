"""Hugging Face `datasets` that are streamed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavemamba.data.base import StreamedSource, classes_of, count_of, digest_of
from wavemamba.data.hf_rows import HuggingFaceRows, named
from wavemamba.data.pictures import PictureView
from wavemamba.errors import ConfigError, DataError
from wavemamba.files import write_atomically


class HuggingFaceStream(StreamedSource):
    """A `datasets.IterableDataset`, read along its shards.

    The order is wavemamba's own (see `Lanes`), not that of `shuffle()`: it resumes at any step. Give the data as
    they are opened, not shuffled. A resumed run skips within a shard without decoding; the lengths of the shards that
    were passed are kept in `index`.

    Args:
        dataset: the data, opened with `streaming=True`.
        view: how pictures become tensors.
        image: column of the pictures.
        label: column of the classes; None: one class.
        classes: names of the classes. None: those of the column.
        name: of the data, in messages.
        lanes: shards that are read side by side.
        buffer: rows of a lane that are held in memory and shuffled among themselves.
        index: folder for the lengths of the shards, one small file each; made if needed. None: in the user's cache,
            `~/.cache/wavemamba`.

    Raises:
        DataError: a column is missing, or the classes are not known.
        ConfigError: `lanes` or `buffer` is below 1, or the data are shuffled.
    """

    def __init__(
        self,
        dataset: Any,
        view: PictureView | None = None,
        *,
        image: str = "image",
        label: str | None = "label",
        classes: Sequence[str] | None = None,
        name: str = "datasets",
        lanes: int = 8,
        buffer: int = 256,
        index: str | Path | None = None,
    ) -> None:
        if lanes < 1 or buffer < 1:
            raise ConfigError(f"lanes, buffer: expected >= 1, got {lanes}, {buffer}")
        self.view = view or PictureView()
        self.shape = self.view.shape
        self.name, self.lanes, self.buffer = name, lanes, buffer
        self.index = Path(index or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "wavemamba")
        self._fingerprint: str | None = None
        if _is_shuffled(dataset):
            raise ConfigError(
                f"{name}: expected data in the order of their files, got shuffled ones; leave shuffle() out, the order "
                "is drawn here"
            )
        with named(name):
            self._rows = HuggingFaceRows(dataset.features, name, self.view, image, label, classes)
            self.dataset = self._rows.prepared(dataset)
        if self._rows.classes is None:
            raise DataError(f"{name}: expected class names in the column {label!r}; name the classes with classes=")
        self.classes = self._rows.classes
        self.num_shards = int(self.dataset.num_shards)  # files, as a rule
        split = (self.dataset.info.splits or {}).get(str(self.dataset.split))
        self.num_examples = None if split is None else split.num_examples

    def rows(self, shard: int, start: int = 0) -> Iterator[Any]:
        """The rows of a shard as dictionaries, pictures as bytes, from row `start` on."""
        what = f"{self.name}, shard {shard}"
        with named(what):
            rows = iter(self.dataset.shard(self.num_shards, shard).skip(start))
        for number in itertools.count(start):
            with named(what):
                row = next(rows, None)
            if row is None:
                return
            yield f"{what}, row {number}", row

    def decode(self, row: Any, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """A row as picture and class."""
        name, cells = row
        with named(name):
            return self._rows.example(cells, name, generator)

    def shard_length(self, shard: int) -> int:
        """Rows of a shard: from the index, or counted by reading them undecoded."""
        try:
            return int(self._length_file(shard).read_text())
        except (OSError, ValueError):
            length = super().shard_length(shard)
            self.learnt_shard_length(shard, length)
            return length

    def learnt_shard_length(self, shard: int, length: int) -> None:
        """Keep the length of a shard in the index."""
        path = self._length_file(shard)
        with contextlib.suppress(OSError):  # where nothing can be written, a resumed run counts once more
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, str(length).encode())

    def _length_file(self, shard: int) -> Path:
        return self.index / self.fingerprint()[:32] / str(shard)

    def fingerprint(self) -> str:
        """Of what the data say of themselves (version, splits, columns, shards) and the first rows of two shards."""
        if self._fingerprint is None:
            info = self.dataset.info
            about = [info.builder_name, info.config_name, info.version, info.splits, info.features, self.num_shards]
            ends = {0, self.num_shards - 1}
            rows = [repr([cells for _, cells in itertools.islice(self.rows(shard), 4)]) for shard in sorted(ends)]
            self._fingerprint = digest_of(json.dumps(self.classes), *map(str, about), *rows)
        return self._fingerprint

    def summary(self) -> str:
        """Rows, shards, classes."""
        shards = f"{self.num_shards:,} shards"
        return f"{self.name}: {count_of(self)} of {classes_of(self)}, streamed from {shards}"


def _is_shuffled(dataset: Any) -> bool:
    """Whether `shuffle()` was called on it: no public attribute says so, but the classes that it wraps the data in."""
    inner = getattr(dataset, "_ex_iterable", None)
    while inner is not None and "Shuffle" not in type(inner).__name__:
        inner = getattr(inner, "ex_iterable", None)
    return inner is not None
