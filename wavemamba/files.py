"""Writing files so that a kill at any moment leaves the old or the new one whole."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_ASIDE = ".writing"


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file, and return once it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` with `data` in one step: a reader, or a kill, sees the old or the new one whole."""
    with written_aside(Path(path)) as aside:
        write_durably(aside, data)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give a name beside `target` to write to; at the end the file is put on the disk and renamed.

    Whatever stood at `target` stays as it was until the new file is whole; a failed write leaves nothing behind. Each
    writer has a name of its own.
    """
    aside = target.with_name(f"{_ASIDE}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield aside
        with aside.open("r+b") as written:  # Windows flushes what is open for writing alone
            os.fsync(written.fileno())
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Put the renames in a folder on the disk, where the system can: Windows opens no folders."""
    if os.name == "nt":
        return
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
