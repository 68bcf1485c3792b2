"""Checkpoints that survive a kill at any moment, a full disk and a truncated file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch

from wavemamba.errors import CheckpointError
from wavemamba.files import sha256_of, sync_folder, write_durably

STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"
_PREFIX = "step-"
_WRITTEN, _REPLACED, _DELETED = ".writing-", ".old-", ".deleting-"


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint did not match its checksum and an older one was taken instead."""


class Checkpoints:
    """The checkpoints of one run: folders `step-00001000/` with `state.pt` and `manifest.json`.

    A checkpoint is written into a hidden folder beside its place, flushed to the disk, and then renamed, so that a
    folder with its final name is always whole. Older ones are deleted only after that. The manifest holds the size and
    the SHA-256 of the state, and both are checked before a state is used. States are read with `weights_only=True`: a
    file can never run code. One process writes; every process may read.

    Args:
        folder: where they are; made when the first one is written.
        keep: how many of the newest to keep, >= 1.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = max(1, keep)

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, ascending."""
        names = (path.name.removeprefix(_PREFIX) for path in self.folder.glob(f"{_PREFIX}*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of `step`."""
        return self.folder / f"{_PREFIX}{step:08d}"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state` as the checkpoint of `step`; then delete all but the newest `keep`.

        Args:
            step: optimiser steps done.
            state: tensors in plain containers, whatever `torch.load(weights_only=True)` reads.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: it could not be written (a full disk, no permission); those before it are untouched.
        """
        aside = self.folder / f"{_WRITTEN}{step:08d}"
        try:
            self._clear_leftovers()
            aside.mkdir(parents=True)
            digest, size = _write_state(aside / STATE_FILE, state)
            manifest = {"step": step, "sha256": digest, "bytes": size, "torch": torch.__version__}
            write_durably(aside / MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
            sync_folder(aside)
            final = self.path(step)
            if final.exists():
                os.replace(final, self.folder / f"{_REPLACED}{step:08d}")
            os.replace(aside, final)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {step} could not be written ({error}); {self.last_good()}; "
                f"free some space or change the folder and start the same command again"
            ) from error
        for old in self.steps()[: -self.keep]:
            # Renamed first: a kill while files are deleted must not leave half a checkpoint under its name.
            with contextlib.suppress(OSError):
                os.replace(self.path(old), self.folder / f"{_DELETED}{old:08d}")
        self._clear_leftovers()
        return final

    def load(self, map_location: str | torch.device = "cpu") -> tuple[int, dict[str, Any]] | None:
        """The newest undamaged checkpoint.

        A damaged one is passed over with a warning and its folder renamed to `damaged-...`.

        Returns:
            `(step, state)`, or None where no checkpoint was ever written.

        Raises:
            CheckpointError: there are checkpoints and all are damaged.
        """
        self._put_back()
        reasons = []
        for step in reversed(self.steps()):
            try:
                state = read_checkpoint(self.path(step), map_location)
            except CheckpointError as error:
                reasons.append(str(error))
                continue
            for reason in reasons:
                warnings.warn(f"{reason}; going on from step {step}", DamagedCheckpointWarning, stacklevel=2)
            return step, state
        if reasons:
            raise CheckpointError(
                f"{self.folder}: expected an undamaged checkpoint, but {'; '.join(reasons)}; restore one from a copy, "
                "or give another folder to start anew"
            )
        return None

    def set_aside_after(self, step: int) -> None:
        """Rename the checkpoints newer than `step`, which `load` found damaged, so that they are not met again."""
        for newer in (found for found in self.steps() if found > step):
            target = self.folder / f"damaged-{newer:08d}"
            shutil.rmtree(target, ignore_errors=True)
            os.replace(self.path(newer), target)

    def _clear_leftovers(self) -> None:
        self._put_back()
        for prefix in (_WRITTEN, _REPLACED, _DELETED):
            for path in self.folder.glob(f"{prefix}*"):
                shutil.rmtree(path, ignore_errors=True)

    def _put_back(self) -> None:
        """Undo a replacement that a kill cut off between its two renames."""
        for path in self.folder.glob(f"{_REPLACED}*"):
            final = self.folder / f"{_PREFIX}{path.name.removeprefix(_REPLACED)}"
            if not final.exists():
                with contextlib.suppress(OSError):  # another process did it
                    os.replace(path, final)

    def last_good(self) -> str:
        """Which checkpoint a message should point to."""
        steps = self.steps()
        return f"the last good one is {self.path(steps[-1])}" if steps else "there is none yet"


def read_checkpoint(folder: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The state in one checkpoint folder, after its size and checksum were compared.

    Raises:
        CheckpointError: a file is missing, or truncated, or changed, or holds more than tensors and containers.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        path = folder / STATE_FILE
        size = path.stat().st_size
        if size != manifest["bytes"]:
            raise CheckpointError(f"{path}: expected {manifest['bytes']} bytes, got {size} (truncated?)")
        with path.open("rb") as file:
            digest = sha256_of(file)
        if digest != manifest["sha256"]:
            raise CheckpointError(f"{path}: expected SHA-256 {manifest['sha256']}, got {digest} (damaged)")
        state: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    except (OSError, ValueError, KeyError, TypeError, pickle.UnpicklingError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder}: not a readable checkpoint ({type(error).__name__}: {error})") from error
    return state


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


def _write_state(path: Path, state: dict[str, Any]) -> tuple[str, int]:
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
    return file.digest.hexdigest(), file.size
