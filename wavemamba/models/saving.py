"""Saving a model with its configuration, and loading it again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wavemamba.errors import CheckpointError, ConfigError
from wavemamba.files import written_aside
from wavemamba.models.weights import download, load_strictly, read_safetensors
from wavemamba.version import __version__

if TYPE_CHECKING:
    from wavemamba.models.base import Model

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_MOST_CONFIG_BYTES = 2**24


def describe(part: Callable[..., Any]) -> str:
    """The name of a function that makes a part, for people: it is never imported from a file."""
    name = getattr(part, "__qualname__", None) or type(part).__qualname__
    return f"{getattr(part, '__module__', None) or type(part).__module__}.{name}"


def save(model: Model, folder: str | os.PathLike[str]) -> None:
    """See `Model.save_pretrained`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = Path(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    text = json.dumps(_record(model), indent=2) + "\n"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with written_aside(target / CONFIG_NAME) as config, written_aside(target / WEIGHTS_NAME) as weights:
            save_file(state, weights, metadata={"format": "pt"})
            config.write_text(text)
    except (OSError, ValueError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in state.values()) / 2**20
        raise CheckpointError(
            f"{target}: expected a folder that takes {size:,.0f} MiB, got: {error}; what it held is as it was; "
            f"free some space or name another folder"
        ) from error


def load(
    source: str | os.PathLike[str],
    cls: type[Model] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    parts: Mapping[str, Callable[..., nn.Module]] | None = None,
) -> Model:
    """See `Model.from_pretrained`; without a class, `config.json` says which family it is."""
    config_path = _find(source, CONFIG_NAME, revision)
    record = _read_record(config_path)
    cls = _class_of(config_path, record) if cls is None else cls
    model = _build(config_path, record, cls, dict(parts or {}))
    load_strictly(model, read_safetensors(_find(source, WEIGHTS_NAME, revision)))
    return model.to(device=device, dtype=dtype).eval()


def load_pretrained(
    folder_or_hub_id: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    **parts: Callable[..., nn.Module],
) -> Model:
    """Load a saved model of any family, as `config.json` says; the arguments are those of `Model.from_pretrained`."""
    return load(folder_or_hub_id, dtype=dtype, device=device, revision=revision, parts=parts)


def _record(model: Model) -> dict[str, Any]:
    trained = getattr(model, "trained_for", None)
    record = {
        "wavemamba": __version__,
        "family": model.family,
        "config": model.config.to_dict(),
        "objective": trained.objective if trained else None,
        "autoencoder": trained.autoencoder if trained else None,
        "class_names": list(trained.class_names) if trained else [],
    }
    needs = model.needs()
    return {**record, "needs": needs} if needs else record


def _read_record(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_CONFIG_BYTES)
        values = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, got: {error}; save the model again") from error
    if not isinstance(values, dict) or not isinstance(values.get("family"), str):
        raise CheckpointError(f"{path}: expected the configuration of a model that this library saved, got another's")
    return values


def _class_of(path: str, record: Mapping[str, Any]) -> type[Model]:
    from wavemamba.models.registry import family_of

    try:
        return family_of(record["family"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _build(path: str, record: Mapping[str, Any], cls: type[Model], parts: dict[str, Any]) -> Model:
    if record["family"] != cls.family:
        raise CheckpointError(
            f"{path}: expected the configuration of a {cls.__name__}, got one of the family {record['family']!r}; "
            "wavemamba.models.load_pretrained takes every family"
        )
    needs = record.get("needs") or {}
    missing = [name for name in needs if name in cls.parts and name not in parts]
    if missing:
        listed = ", ".join(f"{name}= (it was {needs[name]})" for name in missing)
        raise CheckpointError(f"{path}: expected what the model was built with; pass {listed}")
    try:
        config = cls.config_class.from_dict(record.get("config") or {})
        return cls(config, **parts)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _find(source: str | os.PathLike[str], name: str, revision: str | None) -> str:
    try:
        folder = Path(source)
        if (folder / name).is_file():
            return str(folder / name)
        is_folder = folder.is_dir()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source!r}: expected a folder or a hub id, got: {error}") from error
    if is_folder:
        raise CheckpointError(f"{folder}: expected a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, {name} is missing")
    return download(str(source), name, revision)
