"""What local and streamed Hugging Face data share: errors, columns, and how a row becomes an example."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from wavemamba.data.base import numbered_classes
from wavemamba.data.pictures import PictureView
from wavemamba.errors import ConfigError, DataError


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Whatever `datasets` raises (it passes on errors of a dozen packages) as a DataError that names the data."""
    try:
        yield
    except (DataError, ConfigError):
        raise
    except Exception as error:
        raise DataError(
            f"{what}: expected data that 'datasets' can read, got {type(error).__name__}: {error}"
        ) from error


class HuggingFaceRows:
    """What local and streamed data share: which columns are read, and how a row becomes an example."""

    def __init__(
        self, features: Any, name: str, view: PictureView, image: str, label: str | None, classes: Sequence[str] | None
    ) -> None:
        from datasets import ClassLabel, Image

        self.name, self.view, self.image, self.label = name, view, image, label
        if features is None:
            raise DataError(f"{name}: expected columns that are known before reading; give the data features=")
        for column in filter(None, (image, label)):
            if column not in features:
                raise DataError(f"{name}: expected a column {column!r}, there are {', '.join(features)}; name it")
        self._numbers: dict[str, int] | None = None
        self.encoded = isinstance(features[image], Image)
        known = features[label].names if label is not None and isinstance(features[label], ClassLabel) else None
        given = tuple(classes) if classes is not None else None
        self.classes = given or (tuple(known) if known is not None else ("all",) if label is None else None)

    def prepared(self, dataset: Any) -> Any:
        """The data with the columns that are needed, pictures as bytes."""
        from datasets import Image

        dataset = dataset.select_columns([self.image, *([self.label] if self.label is not None else [])])
        return dataset.cast_column(self.image, Image(decode=False)) if self.encoded else dataset

    def example(self, row: Any, name: str, generator: torch.Generator | None) -> tuple[Tensor, int]:
        """A row as picture and class."""
        return self._picture(row[self.image], name, generator), self.number(row, name)

    def opened(self, row: Any) -> IO[bytes]:
        """The encoded picture of a row, to read and seek in; rows of plain numbers have none."""
        cell = _encoded(row[self.image])
        return io.BytesIO(cell) if isinstance(cell, bytes) else open(cell, "rb")

    def _picture(self, cell: Any, name: str, generator: torch.Generator | None) -> Tensor:
        cell = _encoded(cell)
        if isinstance(cell, (bytes, str, Path)):
            return self.view.read(cell, name, generator)
        if cell is None:
            raise DataError(f"{name}: expected a picture in column {self.image!r}, got none")
        from PIL import Image as Pillow

        file = io.BytesIO()
        try:  # rows of plain numbers, (H, W) or (H, W, C)
            numbers = np.asarray(cell)
            if numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() > 255:
                raise ValueError("numbers that are not whole ones from 0 to 255")
            Pillow.fromarray(numbers.astype(np.uint8)).save(file, "png")
        except (ValueError, TypeError, OverflowError, OSError) as error:
            raise DataError(f"{name}: expected a picture in column {self.image!r} ({error})") from error
        return self.view.read(file.getvalue(), name, generator)

    def number(self, row: Any, name: str) -> int:
        """The class of a row; a DataError where its label is none."""
        if self.label is None:
            return 0
        value = row[self.label]
        names = self.classes or ()
        if isinstance(value, str):
            if self._numbers is None:
                counts = Counter(names)  # a name that two classes have says nothing
                self._numbers = {name: number for number, name in enumerate(names) if counts[name] == 1}
            if value in self._numbers:
                return self._numbers[value]
        if isinstance(value, int) and 0 <= value < len(names):
            return value
        raise DataError(f"{name}: expected a label of {len(names)} classes in column {self.label!r}, got {value!r}")


def _encoded(cell: Any) -> Any:
    """The bytes or the path of an encoded picture; plain numbers as they are."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    return _fetched(cell) if isinstance(cell, str) and "://" in cell else cell


def _fetched(address: str) -> bytes:
    """A picture that a streamed row names by its address alone, `hf://...` for example."""
    import fsspec

    with fsspec.open(address, "rb") as file:
        content: bytes = file.read()
    return content


def classes_in(labels: list[Any], name: str, column: str) -> tuple[str, ...]:
    """Class names for a column that has none: the names in it, sorted, or the numbers up to the largest."""
    if all(isinstance(value, str) and value.strip() for value in labels):
        return tuple(sorted(set(labels)))
    if all(isinstance(value, int) and value >= 0 for value in labels):
        return numbered_classes(max(labels), f"{name}, column {column!r}")
    raise DataError(f"{name}: expected numbers >= 0 or names in column {column!r}, got {labels[:5]!r}; name the column")
