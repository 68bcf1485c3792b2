"""What a saved model says of itself: `config.json`, and the same text inside the file of its weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from wavemamba.errors import CheckpointError, ConfigError
from wavemamba.models.description import TrainedFor
from wavemamba.models.hub import find_file
from wavemamba.version import __version__

if TYPE_CHECKING:
    from wavemamba.models.base import Model
    from wavemamba.models.tensor_file import TensorFile

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CONFIG_KEY = "wavemamba"
"""Where the file of weights keeps the text of `config.json`."""
_MOST_BYTES = 2**24


def describe(part: Callable[..., Any]) -> str:
    """The name of a function that makes a part, for people: what a file names is never imported."""
    name = getattr(part, "__qualname__", None) or type(part).__qualname__
    return f"{getattr(part, '__module__', None) or type(part).__module__}.{name}"


def record_of(model: Model) -> dict[str, Any]:
    """What `config.json` holds; `id` tells which weights it belongs to."""
    trained = model.trained_for
    record = {
        "wavemamba": __version__,
        "family": model.family,
        "config": model.config.to_dict(),
        "objective": trained.objective,
        "autoencoder": trained.autoencoder,
        "class_names": list(trained.class_names),
    }
    if needs := model.needs():
        record["needs"] = needs
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return {**record, "id": digest[:16]}


def read_record(
    source: str | os.PathLike[str], weights: TensorFile, revision: str | None = None
) -> tuple[str, dict[str, Any]]:
    """The record of a saved model, and the file that it came from.

    `config.json` may have been edited; where it belongs to other weights, after a save that did not come to its end,
    the record inside the file of weights holds.
    """
    own = weights.metadata.get(CONFIG_KEY)
    inside = None if own is None else parse_record(str(weights.path), own)
    try:
        path = find_file(source, CONFIG_NAME, revision)
    except CheckpointError:
        if inside is None:
            raise
        return str(weights.path), inside
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: expected JSON, got: {error}; save the model again") from error
    record = parse_record(path, text)
    if inside is not None and inside.get("id") != record.get("id"):
        return str(weights.path), inside
    return path, record


def parse_record(path: str, text: str | bytes) -> dict[str, Any]:
    """A record from its text, which came from `path`; what is none is a `CheckpointError`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, got: {error}; save the model again") from error
    if not isinstance(values, dict) or not isinstance(values.get("family"), str):
        raise CheckpointError(f"{path}: expected the configuration of a model that this library saved, got another's")
    if not isinstance(values.get("config"), dict) or not isinstance(values.get("needs", {}), dict):
        raise CheckpointError(f"{path}: expected its options under 'config', got none; save the model again")
    return values


def trained_for(path: str, record: Mapping[str, Any]) -> TrainedFor:
    """What the model was trained for."""
    try:
        return TrainedFor(record.get("objective"), record.get("autoencoder"), tuple(record.get("class_names") or ()))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
