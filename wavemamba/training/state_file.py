"""One file of tensors in plain containers, hashed while it is written, and never able to run code."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch

from wavemamba.errors import CheckpointError
from wavemamba.files import sha256_of


class _HashingFile:
    """A file that hashes what is written and keeps the first error, which torch's zip writer would rename."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        try:
            self.file.write(view)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(view)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        self.file.flush()


def write_state(path: Path, state: dict[str, Any]) -> list[Any]:
    """Write tensors in plain containers, and return once they are on the disk; gives the file's size and SHA-256.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    with path.open("wb") as raw:
        file = _HashingFile(raw)
        try:
            torch.save(state, file)  # type: ignore[arg-type]  # torch asks for IO[bytes] and calls write and flush
        except (OSError, RuntimeError) as error:
            if file.error is not None and error is not file.error:
                raise file.error from error
            raise
        raw.flush()
        os.fsync(raw.fileno())
    return [file.size, file.digest.hexdigest()]


def read_state(path: Path, size: int, digest: str) -> dict[str, Any]:
    """Read what `write_state` wrote, on the CPU, after its size and SHA-256 were compared.

    Raises:
        CheckpointError: the file is missing, truncated or changed, or holds more than tensors and containers.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise CheckpointError(f"{path}: expected {size} bytes, got {found} (truncated?)")
            if (actual := sha256_of(file)) != digest:
                raise CheckpointError(f"{path}: expected SHA-256 {digest}, got {actual} (damaged)")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__}: {error})") from error
    return state
