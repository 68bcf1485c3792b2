"""Loading weights into a model that is there already, adapted to its size where that was asked for."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from wavemamba.errors import CheckpointError
from wavemamba.models.hub import path_of
from wavemamba.models.record import CONFIG_KEY, WEIGHTS_NAME, parse_record, read_record, trained_for
from wavemamba.models.tensor_file import TensorFile
from wavemamba.models.weights import load_strictly, read_weights

if TYPE_CHECKING:
    from wavemamba.models.base import Model

_TRAINING_ALONE = {"class_dropout", "drop_path_rate"}
"""Options that change nothing about what weights mean."""


def load_into(
    model: Model, source: str | os.PathLike[str] | Mapping[str, Tensor], *, changed: Collection[str] = ()
) -> None:
    """Copy weights, in this library's names or others that the family knows, into a model.

    Args:
        model: what to load into; its dtype stays.
        source: a file, a saved folder, or the parameters themselves.
        changed: the options that the caller chose: weights that differ in these alone are adapted.

    Raises:
        CheckpointError: a name is missing, extra or misshapen, or the weights were made with other options; the model
            is left as it was.
    """
    record: dict[str, Any] | None = None
    if isinstance(source, Mapping):
        state = dict(source)
    else:
        path = path_of(source)
        if path.is_dir():
            path = path / WEIGHTS_NAME
            record = read_record(path.parent, TensorFile(path))[1]
        elif path.suffix == ".safetensors":
            metadata = TensorFile(path).metadata
            record = parse_record(str(path), metadata[CONFIG_KEY]) if CONFIG_KEY in metadata else None
        state = read_weights(path)
    if record is not None:
        _expect_same_meaning(model, record, changed)
    state, called = model.import_state(state)
    state, notes = model.adapt_state(state, changed)
    load_strictly(model, state, called)
    model.adapted = tuple(notes)
    if record is not None:
        trained = trained_for(str(source), record)
        same = record["config"].get("num_classes") == getattr(model, "num_classes", None)
        model.trained_for = trained if same else dataclasses.replace(trained, class_names=())
    if notes:
        warnings.warn(f"weights adapted to the model: {'; '.join(notes)}", stacklevel=3)


def _expect_same_meaning(model: Model, record: Mapping[str, Any], changed: Collection[str]) -> None:
    if record["family"] != model.family:
        raise CheckpointError(
            f"expected weights of the family {model.family!r}, got ones of {record['family']!r}; build one of these"
        )
    own = model.config.to_dict()
    others = {
        name: value
        for name, value in record["config"].items()
        if name in own and own[name] != value and name not in {*changed, *_TRAINING_ALONE}
    }
    if others:
        told = ", ".join(f"{name}={value!r}" for name, value in others.items())
        raise CheckpointError(f"expected weights made with the options of the model, got {told}; pass these too")
