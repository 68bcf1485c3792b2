"""Saving a model with its configuration, and loading it again."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import Self

from wavemamba.errors import CheckpointError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


class SavedModel(nn.Module):
    """A model made from one configuration object, with `save_pretrained` and `from_pretrained`.

    A subclass names its configuration class, which has `to_dict` and `from_dict`, and takes such an object.
    """

    config_class: ClassVar[Any]
    config: Any

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `model.safetensors` and `config.json`; each is written aside and renamed.

        Args:
            folder: where to; made where it is missing.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        text = json.dumps({"model": type(self).__name__, **self.config.to_dict()}, indent=2) + "\n"
        write_aside(target / WEIGHTS_NAME, lambda path: save_file(state, path, metadata={"format": "pt"}))
        write_aside(target / CONFIG_NAME, lambda path: Path(path).write_text(text))

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike[str]) -> Self:
        """Load what `save_pretrained` wrote.

        Args:
            folder_or_hub_id: a folder, or the id of a repository on the Hugging Face hub.

        Returns:
            The model, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit.
        """
        config_path = _find(folder_or_hub_id, CONFIG_NAME)
        try:
            values = json.loads(Path(config_path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{config_path}: expected JSON, got {error}") from error
        if not isinstance(values, dict) or values.pop("model", None) != cls.__name__:
            raise CheckpointError(f"{config_path}: expected the configuration of a {cls.__name__}")
        model = cls(cls.config_class.from_dict(values))
        load_strictly(model, read_safetensors(_find(folder_or_hub_id, WEIGHTS_NAME)))
        return model.eval()


def write_aside(target: Path, write: Callable[[str], object]) -> None:
    """Write a file under a temporary name beside `target`, flush it to disk, then rename it.

    Whatever stood at `target` stays as it was until the new file is whole; a failed write leaves nothing behind.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        write(name)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file; a damaged one is a `CheckpointError`."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: expected a whole safetensors file, got: {error}") from error


def load_strictly(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy a state into a model; every missing, extra or misshapen name is listed in one `CheckpointError`.

    The model is left as it was unless everything fits.
    """
    own = model.state_dict()
    problems = [f"missing: {name} {tuple(own[name].shape)}" for name in own if name not in state]
    problems += [f"not in the model: {name} {tuple(state[name].shape)}" for name in state if name not in own]
    problems += [
        f"wrong shape: {name}, expected {tuple(own[name].shape)}, got {tuple(state[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise CheckpointError(f"{len(problems)} names do not fit {type(model).__name__}:\n  {listed}")
    with torch.no_grad():
        model.load_state_dict(state)


def _find(folder_or_hub_id: str | os.PathLike[str], name: str) -> str:
    folder = Path(folder_or_hub_id)
    if (folder / name).is_file():
        return str(folder / name)
    if folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, {name} is missing")
    try:
        return str(hf_hub_download(str(folder_or_hub_id), name))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder_or_hub_id}: neither a folder nor a hub repository that could be read: {error}"
        ) from error
