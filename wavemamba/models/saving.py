"""Saving a model with its configuration, and loading it again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wavemamba.errors import CheckpointError, ConfigError
from wavemamba.files import write_atomically, written_aside
from wavemamba.models.building import build_to_load, has_meta
from wavemamba.models.hub import find_file, path_of
from wavemamba.models.record import CONFIG_KEY, CONFIG_NAME, WEIGHTS_NAME, read_record, record_of, trained_for
from wavemamba.models.tensor_file import TensorFile, write_tensors
from wavemamba.models.weights import load_strictly, without_wrappers

if TYPE_CHECKING:
    from wavemamba.models.base import Model


def save(model: Model, folder: str | os.PathLike[str]) -> None:
    """See `Model.save_pretrained`.

    The weights' file holds the configuration too, and is renamed last: until then the folder loads as it did before.
    """
    state = _saved_state(model)
    text = json.dumps(record_of(model), indent=2) + "\n"
    target, before, renamed = path_of(folder), None, False
    try:
        target.mkdir(parents=True, exist_ok=True)
        config = target / CONFIG_NAME
        with written_aside(target / WEIGHTS_NAME) as weights:
            write_tensors(weights, state, {"format": "pt", CONFIG_KEY: text})
            before = config.read_bytes() if config.exists() else None
            write_atomically(config, text.encode())
            renamed = True
    except (OSError, ValueError) as error:
        with suppress(OSError):
            if before is not None:
                write_atomically(target / CONFIG_NAME, before)
            elif renamed:
                (target / CONFIG_NAME).unlink()
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
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype: expected a floating torch.dtype or None, got {dtype!r}; for example torch.bfloat16")
    with TensorFile(find_file(source, WEIGHTS_NAME, revision)) as weights:
        path, record = read_record(source, weights, revision)
        cls = _class_of(path, record) if cls is None else cls
        given = dict(parts or {})

        on_meta = cls.builds_on_meta and not given and not record.get("needs")

        def build() -> Model:
            return _build(path, record, cls, given)

        def place(tensor: Tensor) -> Tensor:
            wanted = dtype if tensor.is_floating_point() else None
            return tensor.to(device=device or "cpu", dtype=wanted)

        try:
            model = build_to_load(build, weights.shapes(), on_meta=on_meta)
            load_strictly(model, dict(weights.read(place)), assign=True)
            if has_meta(model):  # what is not saved, a buffer for example, is there once the model is built for real
                state = model.state_dict()
                model = build_to_load(build, weights.shapes(), on_meta=False)
                load_strictly(model, state, assign=True)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    model = model.to(device=device, dtype=dtype)
    model.trained_for = trained_for(path, record)
    return model.eval()


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


def _saved_state(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(
                f"{name}: expected a dense tensor with values, got one on {value.device} of {value.layout}"
            )
        state[name] = value.detach().cpu()
    return without_wrappers("the model", state)


def _class_of(path: str, record: Mapping[str, Any]) -> type[Model]:
    from wavemamba.models.registry import family_of

    try:
        return family_of(record["family"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _build(path: str, record: Mapping[str, Any], cls: type[Model], parts: dict[str, Any]) -> Model:
    if record["family"] != cls.family:
        raise CheckpointError(
            f"expected the configuration of a {cls.__name__}, got one of the family {record['family']!r}; "
            "wavemamba.models.load_pretrained takes every family"
        )
    needs = record.get("needs") or {}
    missing = [name for name in needs if name in cls.parts and name not in parts]
    if missing:
        listed = ", ".join(f"{name}= (it was {needs[name]})" for name in missing)
        raise CheckpointError(f"expected the parts that the model was built with; pass {listed}")
    try:
        config = cls.config_class.from_dict(record.get("config") or {})
        return cls(config, **parts)
    except ConfigError as error:
        hint = f"; register {', '.join(needs.values())} before" if needs else ""
        raise CheckpointError(f"{error}{hint}") from error
