"""Errors of the run's disk, named."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from wavemamba.errors import CheckpointError


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


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the system says while something is written to a run's folder into a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder}: expected a folder that can be written, got: {error}; {free_space(folder)}; free some space, or "
            "give another folder; checkpoints that are there stay as they are"
        ) from error
