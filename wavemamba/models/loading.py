"""Loading weights into a model that is there already, adapted to its size where that was asked for."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from wavemamba.errors import CheckpointError
from wavemamba.models.building import bounded_by, drawing_nothing, without_values
from wavemamba.models.hub import path_of
from wavemamba.models.record import CONFIG_KEY, WEIGHTS_NAME, parse_record, read_record, trained_for
from wavemamba.models.tensor_file import TensorFile
from wavemamba.models.weights import (
    bytes_held,
    expect_fit,
    expect_plausible,
    is_state,
    load_strictly,
    read_weights,
    without_wrappers,
)

if TYPE_CHECKING:
    from wavemamba.models.base import Model

WeightsSource = str | os.PathLike[str] | Mapping[str, Tensor]
"""A file, a saved folder, or the parameters themselves."""

Built = TypeVar("Built", bound="Model")
_TRAINING_ALONE = {"class_dropout", "drop_path_rate"}
"""Options that change nothing about what weights mean."""


def load_into(model: Model, source: WeightsSource, *, changed: Collection[str] = ()) -> None:
    """Copy weights, in this library's names or others that the family knows, into a model.

    Args:
        model: what to load into; its dtype stays.
        source: a file, a saved folder, or the parameters themselves.
        changed: the options that the caller chose: weights that differ in these alone are adapted.

    Raises:
        CheckpointError: a name is missing, extra or misshapen, or the weights were made with other options; the model
            is left as it was.
    """
    state, record = _state_and_record(source)
    if record is not None:
        _expect_same_meaning(model, record, changed)
    trained = None if record is None else trained_for(str(source), record)
    state, called = model.import_state(state)
    state, notes = model.adapt_state(state, changed)
    load_strictly(model, state, called)
    model.adapted = tuple(notes)
    if record is not None and trained is not None:
        same = record["config"].get("num_classes") == getattr(model, "num_classes", None)
        model.trained_for = trained if same else dataclasses.replace(trained, class_names=())
    if notes:
        warnings.warn(f"weights adapted to the model: {'; '.join(notes)}", stacklevel=3)


def _state_and_record(
    source: WeightsSource,
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    if isinstance(source, Mapping):
        state = dict(source)
        if not is_state(state):
            raise CheckpointError(f"expected named tensors, got {str(state)[:200]}; pass a module's state_dict()")
        return without_wrappers("the parameters", state), None
    path = path_of(source)
    folder = path if path.is_dir() else None
    if folder is not None:
        path = folder / WEIGHTS_NAME
    if path.suffix != ".safetensors" or not path.is_file():
        return read_weights(path), None
    with TensorFile(path) as file:
        if folder is not None:
            record: dict[str, Any] | None = read_record(folder, file)[1]
        else:
            record = parse_record(str(path), file.metadata[CONFIG_KEY]) if CONFIG_KEY in file.metadata else None
        return without_wrappers(str(path), dict(file.read())), record


def model_from(
    build: Callable[[], Built], state: Mapping[str, Tensor], *, dtype: torch.dtype | None = None, copy: bool = False
) -> Built:
    """A model for weights in the names of another code, compared with them before anything is allocated.

    Args:
        build: makes the model.
        state: its parameters, in names that the model's `import_state` knows.
        dtype: of the model; None: as the parameters are.
        copy: leave the caller's tensors alone; otherwise the model takes them.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: a name is missing, extra or misshapen.
    """
    expect_plausible("the parameters", bytes_held(state), state)
    with bounded_by(state), drawing_nothing(), without_values():
        model = build()
    own, called = model.import_state(state)
    expect_fit(model, own, called)
    some_are_its_own = any(tensor.is_meta for tensor in own.values()) and not any(t.is_meta for t in state.values())
    if some_are_its_own or not model.builds_on_meta:
        with bounded_by(state), drawing_nothing():
            model = build()
        own, called = model.import_state(state)
    values = {name: tensor.to(dtype=dtype, copy=copy) for name, tensor in own.items()}
    load_strictly(model, values, called, assign=True)
    return model.eval()


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
