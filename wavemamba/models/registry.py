"""Models by name, here and in timm."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Callable
from typing import Any

from timm.models import register_model

from wavemamba.errors import CheckpointError
from wavemamba.models.checkpoints import load_into
from wavemamba.models.dimsum.config import DiMSUMConfig
from wavemamba.models.dimsum.model import DiMSUM
from wavemamba.models.saving import download
from wavemamba.names import check_names

__all__ = [
    "create_model",
    "dimsum_b2",
    "dimsum_l2",
    "dimsum_l2_d20",
    "dimsum_l4",
    "dimsum_l4_d20",
    "dimsum_s2",
    "dimsum_tiny",
    "dimsum_xl2",
    "list_models",
]

_BUILDERS: dict[str, Callable[..., DiMSUM]] = {}
_WEIGHTS = {"dimsum_l2": ("haopt/dimsum-L2-imagenet256", "pytorch_model.bin")}
_TIMM_OPTIONS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell pattern, sorted.

    Args:
        pattern: for example "dimsum_l*".
    """
    return sorted(fnmatch.filter(_BUILDERS, pattern))


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> DiMSUM:
    """Build a model by name.

    Args:
        name: one of `list_models()`.
        pretrained: load the published weights from the Hugging Face hub.
        checkpoint_path: load this file instead: the released names or this library's own.
        **overrides: fields of `DiMSUMConfig`, for example `img_size`, `in_chans`, `num_classes`, `depth`.

    Raises:
        ConfigError: the name or an override is unknown, or a value is out of range.
        CheckpointError: there are no published weights of that name, or the weights do not fit.
    """
    check_names([str(name)], _BUILDERS, "model")
    model = _BUILDERS[name](pretrained=pretrained and checkpoint_path is None, **overrides)
    if checkpoint_path is not None:
        load_into(model, checkpoint_path)
    return model


def _register(builder: Callable[..., DiMSUM]) -> Callable[..., DiMSUM]:
    _BUILDERS[builder.__name__] = builder
    registered: Callable[..., DiMSUM] = register_model(builder)
    return registered


def _build(name: str, pretrained: bool, overrides: dict[str, Any], **defaults: Any) -> DiMSUM:
    for option in _TIMM_OPTIONS:
        overrides.pop(option, None)
    check_names(overrides, [field.name for field in dataclasses.fields(DiMSUMConfig)])
    config = DiMSUMConfig(**{**defaults, **overrides})
    weights = _published(name) if pretrained else None
    model = DiMSUM(config)
    model.default_cfg = {
        "architecture": name,
        "input_size": (config.in_chans, *config.img_size),
        "num_classes": config.num_classes,
        "hf_hub_id": _WEIGHTS[name][0] if name in _WEIGHTS else None,
        "first_conv": "patch_embed.proj",
        "classifier": "label_embed.table",
    }
    if weights is not None:
        load_into(model, weights)
    return model


def _published(name: str) -> str:
    if name not in _WEIGHTS:
        raise CheckpointError(
            f"pretrained: expected a model with published weights ({', '.join(_WEIGHTS)}), got {name}; "
            "train it, or name a file in checkpoint_path"
        )
    repository, file = _WEIGHTS[name]
    return download(repository, file)


@_register
def dimsum_tiny(pretrained: bool = False, **overrides: Any) -> DiMSUM:
    """4 blocks of width 128, patch 2: for tests and small images."""
    return _build("dimsum_tiny", pretrained, overrides, dim=128, depth=4, attention_every=2)


@_register
def dimsum_s2(pretrained: bool = False, **overrides: Any) -> DiMSUM:
    """12 blocks of width 384, patch 2."""
    return _build("dimsum_s2", pretrained, overrides, dim=384, depth=12)


@_register
def dimsum_b2(pretrained: bool = False, **overrides: Any) -> DiMSUM:
    """12 blocks of width 768, patch 2."""
    return _build("dimsum_b2", pretrained, overrides, dim=768, depth=12)


@_register
def dimsum_l2(pretrained: bool = False, **overrides: Any) -> DiMSUM:
    """16 blocks of width 1024, patch 2: the published model."""
    return _build("dimsum_l2", pretrained, overrides, dim=1024, depth=16)


@_register
def dimsum_l4(pretrained: bool = False, **overrides: Any) -> DiMSUM:
    """16 blocks of width 1024, patch 4."""
    return _build("dimsum_l4", pretrained, overrides, dim=1024, depth=16, patch_size=4)


@_register
def dimsum_l2_d20(pretrained: bool = False, **overrides: Any) -> DiMSUM:
    """20 blocks of width 1024, patch 2 ("L/2-v1")."""
    return _build("dimsum_l2_d20", pretrained, overrides, dim=1024, depth=20)


@_register
def dimsum_l4_d20(pretrained: bool = False, **overrides: Any) -> DiMSUM:
    """20 blocks of width 1024, patch 4 ("L/4-v1")."""
    return _build("dimsum_l4_d20", pretrained, overrides, dim=1024, depth=20, patch_size=4)


@_register
def dimsum_xl2(pretrained: bool = False, **overrides: Any) -> DiMSUM:
    """24 blocks of width 1152, patch 2."""
    return _build("dimsum_xl2", pretrained, overrides, dim=1152, depth=24)
