"""Writing files so that a kill at any moment leaves the old or the new one whole, and saying what went wrong."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from wavemamba.errors import CheckpointError

_ASIDE = ".writing-"
_WINDOWS = os.name == "nt"


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file, and return once it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` with `data` in one step: a reader, or a kill, sees the old or the new one whole.

    Raises:
        OSError: it cannot be written; what stood there is as it was.
    """
    with written_aside(Path(path)) as aside:
        aside.write_bytes(data)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give a name beside `target` to write to; at the end the file is put on the disk and renamed to `target`.

    Whatever stood at `target` stays as it was until the new file is whole; a failed write leaves nothing behind, and
    what a killed one left is removed by the next in that folder. Each writer has a name of its own. The new file has
    the rights that the umask gives.
    """
    sweep(target.parent)
    aside, descriptor = _new_file(target.parent)
    try:
        try:
            yield aside
            os.fsync(descriptor)
            if not _WINDOWS:
                os.replace(aside, target)
        finally:
            os.close(descriptor)
        if _WINDOWS:  # renames nothing that is open
            os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sweep(folder: Path) -> None:
    """Remove what writers that died left in a folder; what a living one is writing is locked by it, and stays."""
    for aside in folder.glob(f"{_ASIDE}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(aside, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _hold(descriptor):
                    aside.unlink()
            finally:
                os.close(descriptor)
            if _WINDOWS:  # which removes nothing that is open elsewhere
                aside.unlink()


def sync_folder(folder: Path) -> None:
    """Put the renames in a folder on the disk, where the system can: Windows opens no folders."""
    if _WINDOWS:
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


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the system says while something is written to a folder into a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder}: expected a folder that can be written, got: {error}; {free_space(folder)}; free some space, or "
            "give another folder; what is there stays as it is"
        ) from error


def free_space(folder: Path) -> str:
    """How much room there is on the disk of a folder, for a message."""
    there = next((path for path in (folder, *folder.resolve().parents) if path.exists()), Path("/"))
    try:
        return f"{shutil.disk_usage(there).free / 2**20:,.0f} MiB are free there"
    except OSError as error:
        return f"its free space is not known ({error})"


def printable(text: str) -> str:
    """A text with bytes that are no UTF-8, as names of files may hold, as `\\xe9`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _new_file(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / (_ASIDE + secrets.token_hex(6))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _hold(descriptor, wait=True)
        if path.exists():  # or else another writer swept it before it was held
            return path, descriptor
        os.close(descriptor)


def _hold(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed; False where another holds it, or the system cannot tell."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True
