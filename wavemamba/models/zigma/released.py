"""The released ZigMa weights as models of this library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wavemamba.errors import CheckpointError, ConfigError
from wavemamba.models.loading import model_from
from wavemamba.models.weights import WeightsPart, is_state, read_weights
from wavemamba.models.zigma.config import ZigMaConfig
from wavemamba.models.zigma.model import ZigMa
from wavemamba.models.zigma.released_names import names_for
from wavemamba.names import check_names

_IGNORED = {
    "device", "dtype", "use_jit", "m_init", "use_checkpoint", "fused_add_norm", "residual_in_fp32", "n_context_token",
    "initializer_cfg",
}  # fmt: skip
_KEYWORDS = {
    *_IGNORED, "in_channels", "embed_dim", "depth", "img_dim", "patch_size", "has_text", "num_classes",
    "drop_path_rate", "d_context", "ssm_cfg", "norm_epsilon", "rms_norm", "scan_type", "video_frames", "tpe", "use_pe",
}  # fmt: skip
_POSITIONS = {0: "none", 1: "sincos", 2: "learnt"}
_FAMILIES = {"zigzag": "zigma", "hilbert": "hilbert"}


def from_released(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> ZigMa:
    """Build a model from the released code's parameters.

    Args:
        state_dict: the released names and shapes.
        config: the released code's constructor keywords; the names alone do not tell which paths are walked.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: a name is missing, extra or misshapen, or the names are those of another family.
        ConfigError: a keyword is missing or unknown, or asks for what this library has not.
    """
    return _model(state_dict, config, copy=True)


def load_released(path: str | os.PathLike[str], config: Mapping[str, Any], weights: WeightsPart = "ema") -> ZigMa:
    """Read a released `.pt` file; nothing in it is run. See `from_released`."""
    return _model(read_weights(path, weights), config, copy=False)


def _model(state_dict: Mapping[str, Tensor], config: Mapping[str, Any], *, copy: bool) -> ZigMa:
    options = _translated(config)
    if not isinstance(state_dict, Mapping) or not is_state(state_dict) or not names_for(options).are_in(state_dict):
        came = list(state_dict)[:5] if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise CheckpointError(
            f"expected tensors with the released ZigMa names, such as 'blocks.0.mixer.A_log', got {came}; another "
            "family's files are read by its own from_released"
        )
    return model_from(lambda: ZigMa(options), state_dict, copy=copy)


def _translated(released: Mapping[str, Any]) -> ZigMaConfig:
    check_names(released, _KEYWORDS)
    for name in ("in_channels", "embed_dim", "depth", "img_dim"):
        if name not in released:
            raise ConfigError(f"config: expected the released constructor's keywords, got none for {name}")
    for name, only in (("video_frames", 0), ("tpe", False), ("rms_norm", True), ("norm_epsilon", 1e-5)):
        if released.get(name, only) != only:
            raise ConfigError(f"{name}: expected {only}, got {released[name]!r}; this library has no other")
    if released.get("use_pe", 0) not in _POSITIONS:
        raise ConfigError(f"use_pe: expected 0, 1 or 2, got {released['use_pe']!r}; this library has no other")
    kind = str(released.get("scan_type", "v2"))
    family, _, count = kind.partition("N")
    if kind not in ("v1", "v2") and (family not in _FAMILIES or count != "8"):
        raise ConfigError(f"scan_type: expected v1, v2, zigzagN8 or hilbertN8, got {kind!r}; this library has no other")
    text = bool(released.get("has_text", False))
    return ZigMaConfig(
        img_size=released["img_dim"],
        in_chans=released["in_channels"],
        patch_size=released.get("patch_size", 1),
        dim=released["embed_dim"],
        depth=released["depth"],
        num_classes=0 if text else max(released.get("num_classes", -1), 0),
        context_dim=released.get("d_context") if text else None,
        drop_path_rate=released.get("drop_path_rate", 0.1),
        scan=_FAMILIES.get(family, "raster"),
        bidirectional=kind == "v2",
        positions=_POSITIONS[released.get("use_pe", 0)],
        d_state=(released.get("ssm_cfg") or {}).get("d_state", 16),
    )
