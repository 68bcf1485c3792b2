"""Writing files so that a kill at any moment leaves the old or the new one whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file, and return once it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` with `data` in one step: a reader, or a kill, sees the old or the new one whole."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.writing")
    try:
        write_durably(aside, data)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the renames in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(file: BinaryIO) -> str:
    """The SHA-256 of what is left to read of an open binary file, in hexadecimal."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 22):
        digest.update(chunk)
    return digest.hexdigest()
