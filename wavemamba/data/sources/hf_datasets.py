"""Hugging Face `datasets`: held on disk and read at random, or streamed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from wavemamba.data.base import Source, classes_of, count_of, digest_of
from wavemamba.data.hf_rows import HuggingFaceRows, classes_in, named
from wavemamba.data.picture_source import PictureSource
from wavemamba.data.pictures import PictureView
from wavemamba.data.registry import register_source
from wavemamba.data.sources.hf_stream import HuggingFaceStream
from wavemamba.errors import ConfigError, DataError

_PICTURES_HASHED = 16384


class HuggingFaceDataset(PictureSource):
    """A `datasets.Dataset`, read at random.

    Args:
        dataset: the data.
        view: how pictures become tensors.
        image: column of the pictures.
        label: column of the classes; None: one class.
        classes: names of the classes. None: those of the column, or the values that occur in it, sorted.
        name: of the data, in messages.

    Raises:
        DataError: a column is missing, the data are empty, or a label is missing or no class.
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
    ) -> None:
        self.view = view or PictureView()
        self.shape = self.view.shape
        with named(name):
            self._rows = HuggingFaceRows(dataset.features, name, self.view, image, label, classes)
            self.dataset = self._rows.prepared(dataset)
            if not len(self.dataset):
                raise DataError(f"{name}: expected rows, there are none")
            self._labels = list(self.dataset[label]) if label is not None else []
            if self._rows.classes is None:
                self._rows.classes = classes_in(self._labels, name, str(label))
        self.classes = self._rows.classes
        self.name = name
        for index, value in enumerate(self._labels):
            self._rows.number({label: value}, f"{name}, row {index}")

    def __len__(self) -> int:
        return len(self.dataset)

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Row `index` and its class; mirrored by a draw from `generator` where the view mirrors.

        Raises:
            DataError: the row cannot be read.
        """
        name = f"{self.name}, row {index}"
        with named(name):
            return self._rows.example(self.dataset[index], name, generator)

    def opened(self, index: int) -> IO[bytes]:
        """The encoded picture of row `index`."""
        return self._rows.opened(self.dataset[index])

    def fingerprint(self) -> str:
        """Of all labels, and of the undecoded pictures of at most 16,384 rows, evenly spread."""
        count = len(self)
        some = range(0, count, -(-count // _PICTURES_HASHED))
        with named(self.name):
            cells = (repr(self.dataset[index][self._rows.image]) for index in some)
            return digest_of(json.dumps(self.classes), str(count), json.dumps(self._labels), *cells)

    def summary(self) -> str:
        """Rows and classes."""
        return f"{self.name}: {count_of(self)} of {classes_of(self)}"


def open_huggingface(
    what: str,
    *,
    view: PictureView,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    data_files: Any = None,
    streaming: bool = False,
    image: str = "image",
    label: str = "label",
    classes: Sequence[str] | None = None,
    lanes: int | None = None,
    buffer: int | None = None,
    index: str | Path | None = None,
) -> Source:
    """Open Hugging Face data.

    Args:
        what: a hub id, a folder of data files, a builder such as "parquet" with `data_files`, or a folder that
            `save_to_disk` wrote.
        view: how pictures become tensors.
        name: of the configuration.
        split: "train", or what `datasets` takes as a split.
        revision: commit of the hub repository; a name such as "main" may mean other data tomorrow.
        data_files: see `datasets.load_dataset`.
        streaming: read from where the data are, without a copy on disk.
        image: column of the pictures.
        label: column of the classes; "none": one class.
        classes: names of the classes, where the column has none.
        lanes: see `HuggingFaceStream`.
        buffer: see `HuggingFaceStream`.
        index: see `HuggingFaceStream`.

    Raises:
        DataError: `datasets` is not installed, or cannot open or read the data.
        ConfigError: an option that does not go with `streaming`, or goes with it alone.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{what}: expected the package 'datasets' ({error}); pip install 'wavemamba[data]'") from error
    saved = is_saved(Path(what))
    of_streams: dict[str, Any] = {"lanes": lanes, "buffer": buffer, "index": index}
    if wrong := [option for option, value in of_streams.items() if value is not None and not streaming]:
        raise ConfigError(f"{wrong[0]}: expected it with streaming=True alone; leave it out")
    if saved and streaming:
        raise ConfigError(f"streaming: expected it off for {what}, which lies on this disk; leave it out")
    with named(what):
        if saved:
            dataset = datasets.load_from_disk(what)
            if isinstance(dataset, datasets.DatasetDict):
                dataset = dataset[split]
        else:
            dataset = datasets.load_dataset(
                what, name, split=split, revision=revision, data_files=data_files, streaming=streaming
            )
    columns: dict[str, Any] = {"image": image, "label": None if label == "none" else label, "classes": classes}
    columns["name"] = f"{what} ({split})"
    if not streaming:
        return HuggingFaceDataset(dataset, view, **columns)
    given = {option: value for option, value in of_streams.items() if value is not None}
    return HuggingFaceStream(dataset, view, **columns, **given)


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


register_source(
    "huggingface", open_huggingface, claims=is_saved, about="'huggingface:owner/name', or what save_to_disk wrote"
)
