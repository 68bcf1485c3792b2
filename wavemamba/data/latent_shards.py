"""Latents of a whole image folder in shards: written once, resumable, checked by checksum, read at random."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wavemamba.errors import DataError
from wavemamba.files import sha256_of, write_atomically

INDEX_FILE = "index.json"


class LatentShardWriter:
    """Writes latents in numbered shards of equal length, so that an interrupted run goes on at the first missing one.

    A shard is `latents-00000.safetensors` with `mean` and `std` (n, c, h, w) of the autoencoder's scaled posterior,
    `label` (n,) int64, and where images were also encoded mirrored `mean_mirrored` and `std_mirrored`; beside it
    `latents-00000.json` holds its length and SHA-256. `finish` writes `index.json`, without which nothing is read.

    Args:
        folder: made if needed.
        description: what the latents depend on, plain JSON values; a folder begun with another one is refused.
        total: examples in all.
        shard_size: examples a shard.

    Raises:
        DataError: the folder holds shards made from something else.
    """

    def __init__(self, folder: str | Path, description: dict[str, Any], *, total: int, shard_size: int = 4096) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.total = total
        self.shard_size = shard_size
        self.description = json.loads(json.dumps({**description, "total": total, "shard_size": shard_size}))
        begun = self.folder / "begun.json"
        if begun.exists():
            found = _read_object(begun, "give another output folder")
            differing = sorted(
                key for key in {*found, *self.description} if found.get(key) != self.description.get(key)
            )
            if differing:
                what = ", ".join(f"{key} was {found.get(key)!r}, is {self.description.get(key)!r}" for key in differing)
                raise DataError(
                    f"{self.folder}: expected the same encoding as it was begun with, got: {what}; "
                    "give another output folder"
                )
        else:
            write_atomically(begun, json.dumps(self.description, indent=1).encode())

    def missing(self) -> Iterator[tuple[int, range]]:
        """Number and example range of every shard that is not there, or whose file does not match its checksum."""
        for number, start in enumerate(range(0, self.total, self.shard_size)):
            if not self._is_good(number):
                yield number, range(start, min(start + self.shard_size, self.total))

    def write(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Write shard `number`: aside, flushed, renamed, read back and compared; then its checksum.

        Raises:
            DataError: what the disk gives back is not what was written.
        """
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(number)
        write_atomically(path, data)
        entry = {"file": path.name, "count": len(tensors["label"]), "bytes": len(data), "sha256": digest}
        write_atomically(path.with_suffix(".json"), json.dumps(entry).encode())
        if not self._is_good(number):
            raise DataError(f"{path}: expected SHA-256 {digest} after writing, the disk gave back something else")

    def finish(self, classes: tuple[str, ...]) -> None:
        """Write `index.json`.

        Raises:
            DataError: a shard is missing.
        """
        entries = []
        for number in range(-(-self.total // self.shard_size)):
            path = self._path(number).with_suffix(".json")
            if not path.exists():
                raise DataError(f"{path}: expected every shard before the index, this one is missing; encode again")
            entries.append(json.loads(path.read_text()))
        index = {**self.description, "classes": list(classes), "shards": entries}
        write_atomically(self.folder / INDEX_FILE, json.dumps(index, indent=1).encode())

    def _path(self, number: int) -> Path:
        return self.folder / f"latents-{number:05d}.safetensors"

    def _is_good(self, number: int) -> bool:
        path = self._path(number)
        try:
            entry = json.loads(path.with_suffix(".json").read_text())
            return _mismatch(path, entry, checksum=True) is None
        except (OSError, ValueError, KeyError, TypeError):
            return False


class LatentShards:
    """The latents that `LatentShardWriter` wrote, read from memory-mapped files.

    `example(index, generator)` draws from the posterior, `mean + std * eps`, and takes the mirrored latents half of the
    time where `mirror` asks for it; without a generator it is the mean.

    Args:
        folder: where `index.json` is.
        mirror: use the mirrored encodings too.
        verify: compare every shard with its SHA-256 first; otherwise only sizes are compared.

    Raises:
        DataError: no index, or a shard that does not match it, or no mirrored latents where they are asked for.
    """

    def __init__(self, folder: str | Path, *, mirror: bool = False, verify: bool = False) -> None:
        self.folder = Path(folder)
        remedy = "run examples/encode_latents.py to its end"
        self.index = _read_object(self.folder / INDEX_FILE, remedy)
        try:
            self._total, self._shard_size = int(self.index["total"]), int(self.index["shard_size"])
            mirrored = bool(self.index["mirrored"])
            entries = [{key: entry[key] for key in ("file", "bytes", "sha256")} for entry in self.index["shards"]]
            self.classes: tuple[str, ...] = tuple(self.index["classes"])
            channels, height, width = map(int, self.index["shape"])
            if self._total < 1 or len(entries) != -(-self._total // self._shard_size):
                raise ValueError(f"{len(entries)} shards of {self._shard_size} for {self._total} examples")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.folder / INDEX_FILE}: expected the index of latent shards ({error!r}); {remedy}"
            ) from error
        self.shape: tuple[int, int, int] = (channels, height, width)
        for entry in entries:
            if reason := _mismatch(self.folder / entry["file"], entry, checksum=verify):
                raise DataError(f"{reason}; delete the file and run examples/encode_latents.py again")
        if mirror and not mirrored:
            raise DataError(f"{self.folder}: expected mirrored latents, there are none; encode with --mirror")
        self.mirror = mirror
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._total

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Latent `index`, `(c, h, w)` float32, and its class."""
        number, row = divmod(index, self._shard_size)
        mirrored = self.mirror and generator is not None and bool(torch.rand((), generator=generator) < 0.5)
        suffix = "_mirrored" if mirrored else ""
        latent = self._row(number, f"mean{suffix}", row).float()
        if generator is not None:
            std = self._row(number, f"std{suffix}", row).float()
            latent = latent + std * torch.randn(latent.shape, generator=generator)
        return latent, int(self._row(number, "label", row))

    def _row(self, number: int, name: str, row: int) -> Tensor:
        path = self.folder / self.index["shards"][number]["file"]
        try:
            if number not in self._open:
                self._open[number] = safe_open(path, framework="pt")
            value: Tensor = self._open[number].get_slice(name)[row : row + 1][0]
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: expected a readable shard ({error}); encode it again") from error
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # mappings are opened anew in a spawned worker


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a file of finished latent shards ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(found).__name__}; {remedy}")
    return found


def _mismatch(path: Path, entry: dict[str, Any], *, checksum: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path}: expected {entry['bytes']} bytes, got {size}"
        if checksum:
            with path.open("rb") as file:
                if (digest := sha256_of(file)) != entry["sha256"]:
                    return f"{path}: expected SHA-256 {entry['sha256']}, got {digest}"
    except OSError as error:
        return f"{path}: expected a shard ({error})"
    return None
