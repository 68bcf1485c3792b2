"""Reading files of weights without running anything from them, and loading them all or not at all."""

from __future__ import annotations

import argparse
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wavemamba.errors import CheckpointError, ConfigError
from wavemamba.models.hub import path_of
from wavemamba.models.tensor_file import TensorFile

WeightsPart = Literal["ema", "model"]
# Which part of a training checkpoint to take, the first that is there.
_RAW = ("model", "state_dict", "model_state_dict", "module")
_AVERAGES = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "module_ema")
_PARTS: dict[str, tuple[str, ...]] = {
    "ema": (*_AVERAGES, *_RAW),
    "model": _RAW,
}
_AVERAGE = re.compile(r"(^|[^a-z])ema([^a-z]|$)|averag")
# Of these names the first alone may be a model's own, further in.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_COUNTERS = ("n_averaged",)  # what torch.optim.swa_utils.AveragedModel saves beside the weights
_SLACK = 2**20
_INDEX = ".safetensors.index.json"


def read_weights(path: str | os.PathLike[str], weights: WeightsPart = "ema") -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` file, or of a checkpoint written by `torch.save`.

    An index of shards (`model.safetensors.index.json`) is read with the shards beside it. Nothing in the file is run:
    only tensors, plain containers and `argparse.Namespace` are accepted. What wrappers put before names (`module.`,
    `_orig_mod.`) is dropped.

    Args:
        path: the file.
        weights: which weights of a training checkpoint to take: "ema", the averaged ones, or "model"; "ema" takes the
            model's where there is no average.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or names one tensor twice.
        ConfigError: `weights` is neither.
    """
    if weights not in _PARTS:
        raise ConfigError(f"weights: expected one of {', '.join(_PARTS)}, got {weights!r}")
    file = path_of(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: expected a checkpoint file, found none; check the path")
    if file.name.endswith(_INDEX):
        return without_wrappers(str(file), _read_shards(file))
    if file.suffix == ".safetensors":
        return without_wrappers(str(file), read_safetensors(file))
    return without_wrappers(str(file), _unpickle(file, _PARTS[weights]))


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file; a damaged one is a `CheckpointError`."""
    with TensorFile(path) as file:
        return dict(file.read())


def is_state(content: Mapping[Any, Any]) -> bool:
    """Whether a mapping holds named tensors and nothing else."""
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def sizes_of(state: Mapping[str, Tensor], name: str, rank: int) -> torch.Size:
    """The shape of a tensor in a state; a `CheckpointError` where it is missing or has another rank."""
    shape = state[name].shape if name in state else torch.Size()
    if len(shape) != rank:
        raise CheckpointError(f"{name}: expected a tensor of {rank} dimensions, got {tuple(shape) or 'none'}")
    return shape


def load_strictly(
    model: nn.Module, state: Mapping[str, Tensor], called: Callable[[str], str] = str, *, assign: bool = False
) -> None:
    """Put a state into a model; every name that does not fit is listed in one `CheckpointError`.

    The model is left as it was unless everything fits. Weights that are NaN or infinite are loaded, with a warning.

    Args:
        model: what to load into.
        state: its parameters by name.
        called: what the file that the state came from calls a name of the model.
        assign: let the model take the tensors themselves, with their dtype, instead of copying their values.
    """
    expect_fit(model, state, called)
    _warn_of_non_finite(state, called)
    tied: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False) if assign else ():
        tied.setdefault(id(parameter), []).append(name)
    with torch.no_grad():
        model.load_state_dict(state, assign=assign)
    for first, *others in tied.values():
        for other in others:  # one parameter under several names stays one
            holder, _, name = other.rpartition(".")
            setattr(model.get_submodule(holder), name, model.get_parameter(first))


def expect_fit(model: nn.Module, state: Mapping[str, Tensor], called: Callable[[str], str] = str) -> None:
    """Raise `CheckpointError` unless every tensor of a model has one in the state that can be copied into it."""
    own = model.state_dict()
    problems = [f"missing: {called(name)} {tuple(own[name].shape)}" for name in own if name not in state]
    for name, tensor in state.items():
        if name not in own:
            problems.append(f"not in the model: {called(name)} {tuple(tensor.shape)}")
        elif reason := _misfit(tensor, own[name]):
            problems.append(f"{reason[0]}: {called(name)}, expected {reason[1]}, got {reason[2]}")
    if problems:
        listed = "\n  ".join(problems)
        raise CheckpointError(
            f"{len(problems)} names do not fit {type(model).__name__}; build the model with the options that the "
            f"checkpoint was made with:\n  {listed}"
        )


def expect_plausible(what: str, size: int, state: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` where tensors claim far more than `size` bytes can hold, by strides of zero."""
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state.values() if not tensor.is_meta)
    if claimed > 4 * size + _SLACK:
        raise CheckpointError(
            f"{what}: expected tensors that {size:,} bytes can hold, got shapes of {claimed:,} bytes; save them with "
            ".contiguous()"
        )


def bytes_held(state: Mapping[str, Tensor]) -> int:
    """The memory that tensors occupy, what they share counted once."""
    held = {}
    for tensor in state.values():
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        else:
            held[-id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(held.values())


def _unpickle(file: Path, key_order: tuple[str, ...]) -> dict[str, Tensor]:
    try:
        # Mapped, so that of a training checkpoint the part that is wanted alone is read; what torch wrote before zip
        # files cannot be.
        mapped = zipfile.is_zipfile(file)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch's reader fails in many ways on damaged bytes, an index error among them
        raise CheckpointError(
            f"{file}: expected a whole checkpoint of tensors alone, got: {error}; fetch it from a source you trust"
        ) from error
    if isinstance(content, dict) and not is_state(content):
        found = [key for key in key_order if isinstance(content.get(key), dict)]
        if key_order is not _RAW and (not found or found[0] in _RAW):
            found = [key for key in content if _is_average(key, content[key])] + found
        content = content[found[0]] if found else list(content)
    if not isinstance(content, dict) or not is_state(content):
        keys = " or ".join(map(repr, key_order))
        raise CheckpointError(f"{file}: expected named tensors, or a dict with {keys}, got {str(content)[:200]}")
    expect_plausible(str(file), file.stat().st_size, content)
    if not mapped:
        return content
    return {name: tensor.clone() if tensor.layout == torch.strided else tensor for name, tensor in content.items()}


def _is_average(key: Any, value: Any) -> bool:
    named_so = isinstance(key, str) and _AVERAGE.search(key.casefold())
    return bool(named_so) and isinstance(value, dict) and is_state(value)


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: expected an index of shards, got: {error!r}; fetch it again") from error
    state: dict[str, Tensor] = {}
    for shard in shards:
        if not isinstance(shard, str) or not shard or Path(shard).name != shard or "\\" in shard or shard == "..":
            raise CheckpointError(f"{index}: expected shards that lie beside it, got {shard!r}; do not trust this file")
        for name, tensor in read_safetensors(index.parent / shard).items():
            if name in state:
                raise CheckpointError(f"{index}: expected one tensor a name, got {name!r} twice; fetch it again")
            state[name] = tensor
    return state


def without_wrappers(what: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what wrappers put before names, and what they count; two names for one tensor are a `CheckpointError`."""
    stripped: dict[str, Tensor] = {}
    came: dict[str, str] = {}
    for name, tensor in state.items():
        short = name
        for wrapper in _WRAPPERS[1:]:
            short = short.replace(f".{wrapper}", ".")
        while short.startswith(_WRAPPERS):
            short = short.partition(".")[2]
        if short in stripped:
            raise CheckpointError(
                f"{what}: expected one tensor a name, got {came[short]!r} and {name!r}; keep one of the two"
            )
        stripped[short], came[short] = tensor, name
    for counter in _COUNTERS:
        if len(stripped) > 1 and counter in stripped and stripped[counter].dim() == 0:
            del stripped[counter]
    return stripped


def _misfit(tensor: Tensor, own: Tensor) -> tuple[str, Any, Any] | None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else tensor.layout
        return "wrong layout", "a dense tensor", kind
    if tensor.is_meta and not own.is_meta:
        return "wrong device", "a tensor with values", "one on the meta device"
    if tensor.shape != own.shape:
        return "wrong shape", tuple(own.shape), tuple(tensor.shape)
    if own.is_floating_point() and not tensor.is_floating_point():
        return "wrong dtype", "a floating one", tensor.dtype
    if not own.is_floating_point() and tensor.dtype != own.dtype:
        return "wrong dtype", own.dtype, tensor.dtype
    return None


def _warn_of_non_finite(state: Mapping[str, Tensor], called: Callable[[str], str]) -> None:
    bad = [called(name) for name, tensor in state.items() if not _is_finite(tensor)]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        warnings.warn(f"weights that are NaN or infinite: {', '.join(bad[:5])}{more}", stacklevel=3)


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() < 2:
        tensor = tensor.float()
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())  # a sum of large numbers may overflow
