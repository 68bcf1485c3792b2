"""Latents in shards, read at random: a shard is checked when it is opened, and never mapped into memory."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavemamba.data.base import ExampleSource, Findings, classes_of, count_of, digest_of, fault_of, shown
from wavemamba.data.registry import register_source
from wavemamba.data.verify import every
from wavemamba.errors import DataError
from wavemamba.files import sha256_of

INDEX_FILE = "index.json"
_REMEDY = "encode the images to the end with python -m wavemamba.encode"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
_LONGEST_HEADER = 1 << 20
_AT_ONCE = 256  # rows looked at together


@dataclass(frozen=True)
class _Field:
    """Where a tensor of n equal rows lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class LatentShards(ExampleSource):
    """The latents that `LatentShardWriter` wrote.

    `example(index, generator)` draws from the posterior, `mean + std * eps`, and takes the mirrored latents half of the
    time where `mirror` asks for it; without a generator it is the mean. Rows are read, not mapped: a file that is cut
    while a run uses it is an error and not the end of the process. Sizes, headers and labels of all shards are checked
    here; a thorough look compares checksums, too, and looks for NaN.

    Args:
        folder: where `index.json` is.
        mirror: use the mirrored encodings too.

    Raises:
        DataError: no index, or a shard that does not match it, a label that is no class, or no mirrored latents where
            they are asked for.
    """

    def __init__(self, folder: str | Path, *, mirror: bool = False) -> None:
        self.folder = Path(folder)
        self.index = read_object(self.folder / INDEX_FILE, _REMEDY)
        try:
            self._total, self._shard_size = _whole(self.index, "total"), _whole(self.index, "shard_size")
            channels, height, width = (_whole({"shape": side}, "shape") for side in self.index["shape"])
            mirrored = bool(self.index["mirrored"])
            entries = [_entry(entry) for entry in self.index["shards"]]
            self.classes: tuple[str, ...] = tuple(self.index["classes"])
            if not self.classes or not all(isinstance(name, str) for name in self.classes):
                raise ValueError(f"classes: {self.classes!r}")
            if len(entries) != -(-self._total // self._shard_size):
                raise ValueError(f"{len(entries)} shards of {self._shard_size} for {self._total} examples")
            if foreign := [e["file"] for e in entries if Path(e["file"]).name != e["file"] or e["file"] in ("", "..")]:
                raise ValueError(f"a shard outside the folder: {foreign[0]!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{shown(self.folder / INDEX_FILE)}: expected the index of latent shards ({error!r}); {_REMEDY}"
            ) from error
        if mirror and not mirrored:
            raise DataError(f"{shown(self.folder)}: expected mirrored latents, there are none; encode with --mirror")
        self.shape: tuple[int, int, int] = (channels, height, width)
        self.mirror = mirror
        self.paths = [self.folder / entry["file"] for entry in entries]
        self._entries = entries
        numbers = range(len(entries))
        every(self._compare, numbers)
        self._fields = every(lambda number: self._header(number, mirrored), numbers)
        self.labels = torch.cat(every(self._labels, numbers))

    def __len__(self) -> int:
        return self._total

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Latent `index`, `(c, h, w)` float32, and its class.

        Raises:
            DataError: the shard was cut or taken away, or the latent holds NaN.
        """
        mirrored = False
        if self.mirror and generator is not None:
            mirrored = bool(torch.rand((), generator=generator, dtype=torch.float32, device="cpu") < 0.5)
        suffix = "_mirrored" if mirrored else ""
        latent = self._row(index, f"mean{suffix}")
        if generator is not None:
            noise = torch.randn(latent.shape, generator=generator, dtype=torch.float32, device="cpu")
            latent = latent + self._row(index, f"std{suffix}") * noise
        return latent, int(self.labels[index])

    def look(self, indices: Sequence[int], *, thorough: bool = False) -> Findings:
        """Compare the shards of these rows with their SHA-256 and look for NaN, where the look is `thorough`.

        Otherwise there is nothing more to look at than what was when the shards were opened.
        """
        if not thorough:
            return Findings("by sizes, headers and labels of the shards")
        faults: dict[int, str] = {}
        rows: dict[int, list[int]] = {}
        for index in indices:
            rows.setdefault(index // self._shard_size, []).append(index)
        for number, some in rows.items():
            why = fault_of(partial(self._compare, checksum=True), number)
            faults.update(self._not_finite(number, some) if why is None else dict.fromkeys(some, why))
        return Findings("by the shards' checksums, and for NaN", faults)

    def fingerprint(self) -> str:
        """Of the classes and of every shard's SHA-256 in the index."""
        return digest_of(json.dumps([self.classes, self.shape]), *(entry["sha256"] for entry in self._entries))

    def summary(self) -> str:
        """How many latents of which classes."""
        mirrored = ", mirrored ones too" if self.mirror else ""
        return f"{shown(self.folder)}: {count_of(self)} (latents{mirrored}) of {classes_of(self)}"

    def _rows_in(self, number: int) -> int:
        return min(self._shard_size, self._total - number * self._shard_size)

    def _header(self, number: int, mirrored: bool) -> dict[str, _Field]:
        """Where the tensors of a shard lie, from the header of its safetensors file."""
        path, rows = self.paths[number], self._rows_in(number)
        expected = {"label": (rows,), "mean": (rows, *self.shape), "std": (rows, *self.shape)}
        if mirrored:
            expected |= {"mean_mirrored": (rows, *self.shape), "std_mirrored": (rows, *self.shape)}
        fields = {}
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > _LONGEST_HEADER:
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(file.read(length))
            size = path.stat().st_size - 8 - length
            for name, shape in expected.items():
                found = header[name]
                first, last = found["data_offsets"]
                fields[name] = here = _Field(_DTYPES[found["dtype"]], tuple(found["shape"]), 8 + length + first)
                if here.shape != shape or (name == "label") != (here.dtype == torch.int64):
                    raise ValueError(f"{name}: {here.dtype} {here.shape} instead of {shape}")
                if not 0 <= first <= last <= size or last - first != rows * here.row_bytes:
                    raise ValueError(f"{name}: bytes {first} to {last} of {size}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{shown(path)}: expected a readable shard with {', '.join(expected)} of {rows} rows ({error!r}); "
                "delete it and encode it again"
            ) from error
        return fields

    def _labels(self, number: int) -> Tensor:
        labels = self._read(number, "label", 0, self._rows_in(number))
        wrong = (labels < 0) | (labels >= len(self.classes))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise DataError(
                f"{shown(self.paths[number])}: expected labels in 0 ... {len(self.classes) - 1}, got "
                f"{int(labels[row])} in row {row}; encode the images again"
            )
        return labels

    def _compare(self, number: int, *, checksum: bool = False) -> None:
        if reason := mismatch(self.paths[number], self._entries[number], checksum=checksum):
            raise DataError(f"{reason}; delete the file and encode the images again")

    def _not_finite(self, number: int, indices: Sequence[int]) -> dict[int, str]:
        """Those of some examples of a shard that hold NaN, and what is said of them."""
        begin = number * self._shard_size
        first, end = min(indices) - begin, max(indices) - begin + 1
        faults: dict[int, str] = {}
        for name in (name for name in self._fields[number] if name != "label"):
            for start in range(first, end, _AT_ONCE):
                values = self._read(number, name, start, min(_AT_ONCE, end - start))
                for row in (~_finite(values)).nonzero()[:, 0].tolist():
                    faults.setdefault(begin + start + row, self._not_finite_words(number, name, start + row))
        return {index: faults[index] for index in indices if index in faults}

    def _row(self, index: int, name: str) -> Tensor:
        """Row `index` of all shards, float32 and finite."""
        number, row = divmod(index, self._shard_size)
        values = self._read(number, name, row, 1)
        if not _finite(values).all():
            raise DataError(self._not_finite_words(number, name, row))
        return values[0]

    def _not_finite_words(self, number: int, name: str, row: int) -> str:
        return (
            f"{shown(self.paths[number])}: expected finite latents, got NaN or infinity in {name!r}, row {row}; "
            "the data are at fault, not the training: encode them again, in float32 or with another autoencoder"
        )

    def _read(self, number: int, name: str, first: int, rows: int) -> Tensor:
        field = self._fields[number][name]
        data = bytearray(rows * field.row_bytes)
        try:
            with self.paths[number].open("rb", buffering=0) as file:
                file.seek(field.start + first * field.row_bytes)
                got = file.readinto(data)
        except OSError as error:
            raise DataError(
                f"{shown(self.paths[number])}: expected a readable shard ({error}); encode it again"
            ) from error
        if got != len(data):
            raise DataError(
                f"{shown(self.paths[number])}: expected {len(data)} bytes of {name!r}, got {got}: the file was cut "
                "since it was opened; delete it and encode it again"
            )
        values = torch.frombuffer(data, dtype=field.dtype).view(rows, *field.shape[1:])
        return values if name == "label" else values.to(torch.float32)


def open_latents(what: str, *, mirror: bool = False) -> LatentShards:
    """Open a folder of latent shards, see `LatentShards`."""
    return LatentShards(what, mirror=mirror)


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file; numbers in it are finite.

    Raises:
        DataError: there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{shown(path)}: expected a file of finished latent shards ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise DataError(f"{shown(path)}: expected a JSON object, got {type(found).__name__}; {remedy}")
    return found


def mismatch(path: Path, entry: dict[str, Any], *, checksum: bool) -> str | None:
    """How a file differs from its entry in the index; None where it does not."""
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{shown(path)}: expected {entry['bytes']} bytes, got {size}"
        if checksum:
            with path.open("rb") as file:
                if (digest := sha256_of(file)) != entry["sha256"]:
                    return f"{shown(path)}: expected SHA-256 {entry['sha256']}, got {digest}"
    except OSError as error:
        return f"{shown(path)}: expected a shard ({error})"
    return None


def _finite(values: Tensor) -> Tensor:
    """(rows, ...) to (rows,), bool: which rows hold neither NaN nor infinity."""
    return values.flatten(1).isfinite().all(1)


def _entry(found: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"file": str(found["file"]), "sha256": str(found["sha256"])}
    return {**entry, "bytes": _whole(found, "bytes")}


def _whole(entry: dict[str, Any], name: str) -> int:
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: {value!r} instead of a whole number >= 1")
    return value


def _refuse_constant(word: str) -> float:
    raise ValueError(f"the number {word}")


register_source(
    "latents",
    open_latents,
    claims=lambda path: (path / INDEX_FILE).is_file(),
    about=f"a folder of latent shards with {INDEX_FILE}",
)
