"""Latents of a whole image folder in shards: written once, resumable, checked by checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from wavemamba.checks import expect_count
from wavemamba.data.base import shown
from wavemamba.data.sources.latent_shards import INDEX_FILE, mismatch, read_object
from wavemamba.errors import ConfigError, DataError
from wavemamba.files import write_atomically


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
        ConfigError: `total` or `shard_size` is below 1, or the description is no JSON.
    """

    def __init__(self, folder: str | Path, description: dict[str, Any], *, total: int, shard_size: int = 4096) -> None:
        self.folder = Path(folder)
        self.total = total = expect_count("total", total, 1)
        self.shard_size = shard_size = expect_count("shard_size", shard_size, 1)
        try:
            text = json.dumps({**description, "total": total, "shard_size": shard_size}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"description: expected plain JSON values, got {description!r} ({error})") from error
        self.description = json.loads(text)
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = self.folder / "begun.json"
        if begun.exists() and any(self.folder.glob("latents-*.safetensors")):
            self._refuse_another(read_object(begun, "give another output folder"))
        write_atomically(begun, json.dumps(self.description, indent=1).encode())

    def _refuse_another(self, found: dict[str, Any]) -> None:
        wanted = self.description
        differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if differing:
            what = ", ".join(f"{key} was {found.get(key)!r}, is {wanted.get(key)!r}" for key in differing)
            raise DataError(
                f"{shown(self.folder)}: expected the same encoding as it was begun with, got: {what}; "
                "give another output folder"
            )

    def missing(self) -> Iterator[tuple[int, range]]:
        """Number and example range of every shard that is not there, or whose file does not match its checksum."""
        for number, start in enumerate(range(0, self.total, self.shard_size)):
            if not self._is_good(number):
                yield number, range(start, min(start + self.shard_size, self.total))

    def write(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Write shard `number`: aside, flushed, renamed, read back and compared; then its checksum.

        Raises:
            DataError: a latent is NaN or infinite, or what the disk gives back is not what was written.
        """
        for name, tensor in tensors.items():
            good = tensor.flatten(1).isfinite().all(1) if tensor.is_floating_point() else None
            if good is not None and not good.all():
                image = number * self.shard_size + int((~good).nonzero()[0])
                raise DataError(
                    f"shard {number}: expected finite latents, got NaN or infinity in {name!r} of image {image}; "
                    "encode in float32 or with another autoencoder"
                )
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(number)
        write_atomically(path, data)
        entry = {"file": path.name, "count": len(tensors["label"]), "bytes": len(data), "sha256": digest}
        write_atomically(path.with_suffix(".json"), json.dumps(entry).encode())
        if not self._is_good(number):
            raise DataError(
                f"{shown(path)}: expected SHA-256 {digest} after writing, the disk gave back something else"
            )

    def finish(self, classes: tuple[str, ...]) -> None:
        """Write `index.json`.

        Raises:
            DataError: a shard is missing.
        """
        entries = []
        for number in range(-(-self.total // self.shard_size)):
            path = self._path(number).with_suffix(".json")
            if not path.exists():
                raise DataError(
                    f"{shown(path)}: expected every shard before the index, this one is missing; encode again"
                )
            entries.append(read_object(path, "delete it and encode again"))
        index = {**self.description, "classes": list(classes), "shards": entries}
        write_atomically(self.folder / INDEX_FILE, json.dumps(index, indent=1).encode())

    def _path(self, number: int) -> Path:
        return self.folder / f"latents-{number:05d}.safetensors"

    def _is_good(self, number: int) -> bool:
        path = self._path(number)
        try:
            entry = read_object(path.with_suffix(".json"), "")
            return mismatch(path, entry, checksum=True) is None
        except (DataError, KeyError, TypeError):
            return False
