"""What moves a sample, written down."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from wavemamba.diffusion import Conditions, Objective
from wavemamba.errors import ConfigError
from wavemamba.version import __version__


def weights_digest(model: nn.Module) -> str | None:
    """SHA-256 of names, shapes, dtypes and values of all weights as they are in memory; None where some are not."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        if tensor.is_meta:
            return None
        for part in (name.encode(), *_content(tensor)):
            digest.update(part)
    return digest.hexdigest()


def _content(tensor: Tensor) -> tuple[bytes | memoryview, ...]:
    about = f" {tuple(tensor.shape)} {tensor.dtype} ".encode()
    plain = tensor.detach().to("cpu").contiguous()
    return (about, plain.reshape(-1).view(torch.uint8).numpy().data) if plain.numel() else (about,)


def plain_conditions(conditions: Conditions | None) -> dict[str, Any] | None:
    """Further conditions as plain values; tensors as SHA-256 of shape, dtype and values."""
    if not conditions:
        return None
    return {
        name: hashlib.sha256(b"".join(_content(value))).hexdigest() if isinstance(value, Tensor) else repr(value)
        for name, value in conditions.items()
    }


def plain_objective(objective: Objective) -> dict[str, Any] | str:
    """The objective's plain values; its description where a part of the user's own is not registered."""
    try:
        return objective.to_dict()
    except ConfigError:
        return repr(objective)


def machine(device: torch.device) -> dict[str, Any]:
    """The device and the versions that results depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "versions": {
            "wavemamba": __version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in ("torch", "torchdiffeq", "diffusers")},
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
