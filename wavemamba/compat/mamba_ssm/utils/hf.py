"""`mamba_ssm.utils.hf`: configuration and weights of a folder or a hub repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavemamba.errors import CheckpointError

__all__ = ["load_config_hf", "load_state_dict_hf"]


def load_config_hf(model_name: str) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        CheckpointError: it cannot be found or read.
    """
    path = _find(model_name, "config.json")
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected JSON, got: {error}; fetch it again") from error
    return values


def load_state_dict_hf(model_name: str, device: Any = None, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Read `pytorch_model.bin`, tensors alone: nothing in the file is run.

    Raises:
        CheckpointError: it cannot be found or read.
    """
    path = _find(model_name, "pytorch_model.bin")
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader fails in many ways on damaged bytes
        raise CheckpointError(f"{path}: expected named tensors, got: {error}; fetch it again") from error
    return {name: tensor.to(device=device, dtype=dtype or tensor.dtype) for name, tensor in state.items()}


def _find(model_name: str, name: str) -> Path:
    if (local := Path(model_name) / name).is_file():
        return local
    from wavemamba.models.hub import download

    return Path(download(model_name, name))
