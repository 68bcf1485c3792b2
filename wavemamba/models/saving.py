"""Saving a model with its configuration, and loading it again."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wavemamba.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


class SavedModel(nn.Module):
    """A model made from one configuration object, with `save_pretrained` and `from_pretrained`.

    A subclass names its configuration class, which has `to_dict` and `from_dict`, and takes such an object.
    """

    config_class: ClassVar[Any]
    config: Any

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `model.safetensors` and `config.json`; both are written aside, then renamed.

        Args:
            folder: where to; made where it is missing.

        Raises:
            CheckpointError: the folder cannot be written; what it held is as it was.
        """
        target = Path(folder)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        text = json.dumps({"model": type(self).__name__, **self.config.to_dict()}, indent=2) + "\n"
        try:
            target.mkdir(parents=True, exist_ok=True)
            with written_aside(target / CONFIG_NAME) as config, written_aside(target / WEIGHTS_NAME) as weights:
                save_file(state, weights, metadata={"format": "pt"})
                config.write_text(text)
        except (OSError, SafetensorError) as error:
            size = sum(tensor.nbytes for tensor in state.values()) / 2**20
            raise CheckpointError(
                f"{target}: expected a folder that takes {size:,.0f} MiB, got: {error}; what it held is as it was; "
                f"free some space or name another folder"
            ) from error

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
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{config_path}: expected JSON, got: {error}; save the model again") from error
        if not isinstance(values, dict) or values.pop("model", None) != cls.__name__:
            raise CheckpointError(f"{config_path}: expected the configuration of a {cls.__name__}, got another's")
        try:
            config = cls.config_class.from_dict(values)
        except ConfigError as error:
            raise CheckpointError(f"{config_path}: {error}") from error
        model = cls(config)
        load_strictly(model, read_safetensors(_find(folder_or_hub_id, WEIGHTS_NAME)))
        return model.eval()


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give a temporary name beside `target` to write to; at the end the file is flushed to disk and renamed.

    Whatever stood at `target` stays as it was until the new file is whole; a failed write leaves nothing behind.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.chmod(0o644)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file; a damaged one is a `CheckpointError`."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: expected a whole safetensors file, got: {error}; fetch it again") from error


def load_strictly(model: nn.Module, state: dict[str, Tensor], called: Callable[[str], str] = str) -> None:
    """Copy a state into a model; every missing, extra or misshapen name is listed in one `CheckpointError`.

    The model is left as it was unless everything fits.

    Args:
        model: what to load into.
        state: its parameters by name.
        called: what the file that the state came from calls a name of the model.
    """
    own = model.state_dict()
    problems = [f"missing: {called(name)} {tuple(own[name].shape)}" for name in own if name not in state]
    for name, tensor in state.items():
        if name not in own:
            problems.append(f"not in the model: {called(name)} {tuple(tensor.shape)}")
        elif tensor.shape != own[name].shape:
            expected, got = tuple(own[name].shape), tuple(tensor.shape)
            problems.append(f"wrong shape: {called(name)}, expected {expected}, got {got}")
        elif not tensor.is_floating_point():
            problems.append(f"wrong dtype: {called(name)}, expected a floating one, got {tensor.dtype}")
    if problems:
        listed = "\n  ".join(problems)
        raise CheckpointError(
            f"{len(problems)} names do not fit {type(model).__name__}; build the model with the options that the "
            f"checkpoint was made with:\n  {listed}"
        )
    with torch.no_grad():
        model.load_state_dict(state)


def _find(folder_or_hub_id: str | os.PathLike[str], name: str) -> str:
    folder = Path(folder_or_hub_id)
    if (folder / name).is_file():
        return str(folder / name)
    if folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, {name} is missing")
    return download(str(folder_or_hub_id), name)


def download(repository: str, name: str) -> str:
    """Fetch a file from the Hugging Face hub, or its cache; what fails is a `CheckpointError`."""
    try:
        return str(hf_hub_download(repository, name))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{repository}: expected a folder, or a hub repository with {name} that can be read, got: {error}"
        ) from error
