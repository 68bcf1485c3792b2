"""Checkpoints that survive a kill at any moment, a full disk and a truncated file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from wavemamba.errors import CheckpointError
from wavemamba.files import free_space, sync_folder, write_durably
from wavemamba.training.processes import gather, rank
from wavemamba.training.sharded_files import (
    SHARD_FOLDER,
    put_shards_back,
    read_shards,
    shard_damage,
    shard_names,
    split_off_shards,
    tensors_by_name,
    write_shards,
)
from wavemamba.training.state_file import read_state, write_state

STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"
FORMAT = "wavemamba training checkpoint"
_PREFIX = "step-"
_WRITTEN, _REPLACED, _DELETED = ".writing-", ".old-", ".deleting-"

Targets = Callable[[], dict[str, Any]]
"""Gives a nested state whose sharded tensors a checkpoint is read into."""


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint did not match its checksum and an older one was taken instead."""


class Checkpoints:
    """The checkpoints of one run: folders `step-00001000/` with `state.pt` and `manifest.json`.

    A checkpoint is written into a hidden folder beside its place, flushed to the disk, and then renamed, so that a
    folder with its final name is always whole. Older ones are deleted only after that. The manifest holds the size and
    the SHA-256 of every file, and both are checked before a state is used. States are read with `weights_only=True`,
    shards from safetensors: a file can never run code. Folders of other names, or without such a manifest, are
    somebody else's and are left alone.

    Every process calls `save` and `load`. The first one writes `state.pt`; sharded tensors (FSDP2) are written to
    `shards/` and read from there by the processes that hold them, so that none needs memory for the whole.

    Args:
        folder: where they are; made when the first one is written.
        keep: how many of the newest to keep, >= 1.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = max(1, keep)

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, ascending."""
        found = {path.name: path for path in self.folder.glob(f"{_PREFIX}*") if path.is_dir()}
        numbers = {name: int(number) for name in found if (number := name.removeprefix(_PREFIX)).isdecimal()}
        ours = [step for name, step in numbers.items() if found[name] == self.path(step)]
        return sorted(step for step in ours if not _is_foreign(self.path(step)))

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of `step`."""
        return self.folder / f"{_PREFIX}{step:08d}"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state` as the checkpoint of `step`; then delete all but the newest `keep`.

        Args:
            step: optimiser steps done.
            state: tensors in plain containers, whatever `torch.load(weights_only=True)` reads; and sharded tensors in
                dictionaries.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: it could not be written (a full disk, no permission); those before it are untouched.
        """
        aside = self.folder / f"{_WRITTEN}{step:08d}"
        plain, shards = split_off_shards(state)
        files: dict[str, list[Any]] = {}
        with self._all_or_nothing(step, aside):
            if rank() == 0:
                self._clear_leftovers()
                if self.path(step).exists() and _is_foreign(self.path(step)):
                    raise OSError(errno.EEXIST, "a folder of that name, which is no checkpoint, is in the way; move it")
                aside.mkdir(parents=True)
                files[STATE_FILE] = write_state(aside / STATE_FILE, plain)
        if shards:
            with self._all_or_nothing(step, aside):
                files |= {f"{SHARD_FOLDER}/{k}": v for k, v in write_shards(aside / SHARD_FOLDER, shards).items()}
        with self._all_or_nothing(step, aside):
            if rank() == 0:
                self._finish(step, aside, files)
        return self.path(step)

    def _finish(self, step: int, aside: Path, files: dict[str, list[Any]]) -> None:
        manifest = {"format": FORMAT, "step": step, "files": files, "torch": torch.__version__}
        write_durably(aside / MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
        for folder in (aside / SHARD_FOLDER, aside):
            if folder.is_dir():
                sync_folder(folder)
        final = self.path(step)
        if final.exists():
            os.replace(final, self.folder / f"{_REPLACED}{step:08d}")
        os.replace(aside, final)
        sync_folder(self.folder)
        for old in self.steps()[: -self.keep]:
            # Renamed first: a kill while files are deleted must not leave half a checkpoint under its name.
            with contextlib.suppress(OSError):
                os.replace(self.path(old), self.folder / f"{_DELETED}{old:08d}")
        self._clear_leftovers()

    @contextlib.contextmanager
    def _all_or_nothing(self, step: int, aside: Path) -> Iterator[None]:
        """Where one process fails, all raise, and what was begun is removed."""
        failure: BaseException | None = None
        try:
            yield
        except (OSError, RuntimeError) as error:
            failure = error
        reasons = [reason for reason in gather(failure and f"{type(failure).__name__}: {failure}") if reason]
        if reasons:
            if rank() == 0:
                shutil.rmtree(aside, ignore_errors=True)
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {step} could not be written ({reasons[0]}); "
                f"{self.last_good()}; {free_space(self.folder)}; free some, or change the folder, and start the same "
                "command again"
            ) from failure

    def load(self, targets: Targets | None = None) -> tuple[int, dict[str, Any]] | None:
        """The newest undamaged checkpoint, the same one in every process.

        A damaged one is passed over with a warning and its folder stays until `set_aside_after`.

        Args:
            targets: the state to read sharded tensors into; None: they become whole ones.

        Returns:
            `(step, state)`, or None where no checkpoint was ever written.

        Raises:
            CheckpointError: there are checkpoints and all are damaged; or the processes see different files.
        """
        self._put_back()
        steps = self.steps()
        check_same_files(steps, self.folder)
        reasons: list[str] = []
        for step in reversed(steps):
            reason, plain = _read_plain(self.path(step))
            everyone = [found for found in gather(reason) if found]
            if everyone or plain is None:
                reasons.append(everyone[0])
                continue
            for reason in reasons:
                warnings.warn(f"{reason}; going on from step {step}", DamagedCheckpointWarning, stacklevel=2)
            return step, _with_shards(self.path(step), plain, targets)
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


def check_same_files(steps: list[int], folder: str | Path) -> None:
    """Refuse to go on unless all processes see the same checkpoints; every process has to call it, and waits.

    Args:
        steps: of the checkpoints that this process sees.
        folder: where it looked.

    Raises:
        CheckpointError: the processes do not see the same files.
    """
    found = gather(steps)
    if any(other != found[0] for other in found):
        listed = ", ".join(f"process {number}: {those or 'none'}" for number, those in enumerate(found))
        raise CheckpointError(
            f"{folder}: expected every process to find the same checkpoints, got {listed}; give a folder on "
            "a file system that all machines share"
        )


def read_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The state in one checkpoint folder, whole, after sizes and checksums were compared.

    Raises:
        CheckpointError: a file is missing, or truncated, or changed, or holds more than tensors and containers.
    """
    reason, plain = _read_plain(Path(folder))
    if plain is None:
        raise CheckpointError(reason)
    return _with_shards(Path(folder), plain, None)


def _is_foreign(folder: Path) -> bool:
    """Whether a folder holds a readable manifest of some other program, or none and no state of ours either."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
    except FileNotFoundError:
        return not (folder / STATE_FILE).exists()
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") != FORMAT


def _read_plain(folder: Path) -> tuple[str | None, dict[str, Any] | None]:
    """What is wrong with a checkpoint, or else its state with the names of its shards, of which a share is hashed."""
    try:
        files: dict[str, list[Any]] = json.loads((folder / MANIFEST_FILE).read_text())["files"]
        expected = files.pop(STATE_FILE)
        if reason := shard_damage(folder, files):
            return reason, None
        state = read_state(folder / STATE_FILE, *expected)
    except CheckpointError as error:
        return str(error), None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder}: not a readable checkpoint ({type(error).__name__}: {error})", None
    return None, state


def _with_shards(folder: Path, plain: dict[str, Any], targets: Targets | None) -> dict[str, Any]:
    if not (folder / SHARD_FOLDER).is_dir():
        return plain
    wanted = None
    if targets is not None:
        own, names = tensors_by_name(targets()), shard_names(plain)
        wanted = {name: own[name] for name in sorted(names & own.keys())}
    restored: dict[str, Any] = put_shards_back(plain, read_shards(folder / SHARD_FOLDER, wanted))
    return restored
