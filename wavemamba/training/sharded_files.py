"""Sharded tensors in safetensors files, by torch's distributed checkpoint: each process writes and reads its part."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from wavemamba.errors import CheckpointError
from wavemamba.files import sha256_of
from wavemamba.training.processes import gather, rank, world_size

SHARD_FOLDER = "shards"
_MARK = "sharded tensor"


def split_off_shards(state: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A nested state without its sharded tensors, each replaced by a note of its name, and those tensors by name."""
    if isinstance(state, DTensor):
        return {_MARK: name}, {name: state}
    if not isinstance(state, dict):
        return state, {}
    plain, shards = {}, {}
    for key, value in state.items():
        plain[key], more = split_off_shards(value, f"{name}/{key}" if name else str(key))
        shards.update(more)
    return plain, shards


def put_shards_back(plain: Any, shards: dict[str, Tensor]) -> Any:
    """The inverse of `split_off_shards`; None in the place of a tensor that was not read."""
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {_MARK}:
        return shards.get(plain[_MARK])
    return {key: put_shards_back(value, shards) for key, value in plain.items()}


def write_shards(folder: Path, shards: dict[str, Tensor]) -> dict[str, list[Any]]:
    """Write `shards`; every process calls it, writes its own part, and hashes an equal share of the files.

    Returns:
        Size and SHA-256 of every file by its name.

    Raises:
        OSError: a process could not write.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(shards, storage_writer=writer)
    except CheckpointException as error:
        raise _first_cause(error) from error
    described: dict[str, list[Any]] = {}
    for part in gather({path.name: _describe(path) for path in _own_share(folder)}):
        described.update(part)
    return described


def shard_damage(folder: Path, described: dict[str, list[Any]]) -> str | None:
    """What is wrong with the share of the files that this process looks at; None: nothing."""
    for name in sorted(described)[rank() :: world_size()]:
        path = folder / name
        try:
            found = _describe(path)
        except OSError as error:
            return f"{path}: {error}"
        if found != list(described[name]):
            return f"{path}: expected {described[name][0]} bytes with SHA-256 {described[name][1]}, got {found}"
    return None


def read_shards(folder: Path, targets: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Read shards that any number of processes wrote.

    Args:
        folder: what `write_shards` wrote.
        targets: tensors to read into, sharded in any way, or whole; None: whole ones are made.

    Raises:
        CheckpointError: the files do not hold these tensors.
    """
    try:
        reader = HuggingFaceStorageReader(str(folder))
        stored: Any = reader.read_metadata().state_dict_metadata
        if targets is None:
            targets = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in stored.items()}
        wrong = sorted(name for name in targets if name not in stored or stored[name].size != targets[name].shape)
        if wrong:
            raise CheckpointError(f"{folder}: expected the tensors of this model, got others: {', '.join(wrong[:5])}")
        sharded = any(isinstance(tensor, DTensor) for tensor in targets.values())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant here
            load(targets, storage_reader=reader, no_dist=not sharded)
    except CheckpointException as error:
        raise CheckpointError(f"{folder}: expected readable shards, got: {_first_cause(error)}") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: expected readable shards, got: {error!r}") from error
    return targets


def shard_names(plain: Any) -> set[str]:
    """The names of the sharded tensors that `split_off_shards` took out."""
    if not isinstance(plain, dict):
        return set()
    if plain.keys() == {_MARK}:
        return {plain[_MARK]}
    return {name for value in plain.values() for name in shard_names(value)}


def tensors_by_name(state: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of a nested state, under the names that `split_off_shards` gives them."""
    if isinstance(state, Tensor):
        return {name: state}
    if not isinstance(state, dict):
        return {}
    pairs = (tensors_by_name(value, f"{name}/{key}" if name else str(key)) for key, value in state.items())
    return {key: tensor for found in pairs for key, tensor in found.items()}


def _own_share(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.iterdir())[rank() :: world_size()]


def _describe(path: Path) -> list[Any]:
    with path.open("rb") as file:
        digest = sha256_of(file)
        return [os.fstat(file.fileno()).st_size, digest]


def _first_cause(error: CheckpointException) -> OSError:
    cause = next(iter(error.failures.values()))[0]
    return cause if isinstance(cause, OSError) else OSError(f"{type(cause).__name__}: {cause}")
