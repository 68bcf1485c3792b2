"""The released DiT and SiT weights as models of this library."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wavemamba.errors import CheckpointError, ConfigError
from wavemamba.models.dit.config import DiTConfig
from wavemamba.models.dit.model import DiT
from wavemamba.models.dit.released_names import NAMES
from wavemamba.models.loading import model_from
from wavemamba.models.weights import WeightsPart, is_state, read_weights, sizes_of
from wavemamba.names import check_names, choose

_KEYWORDS = (
    "input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "mlp_ratio", "class_dropout_prob",
    "num_classes", "learn_sigma",
)  # fmt: skip
_RELEASES = ("dit", "sit")
_HEAD_WIDTHS = {384: 6, 768: 12, 1024: 16, 1152: 16}


def from_released(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, *, release: str = "dit"
) -> DiT:
    """Build a model from the released code's parameters.

    Args:
        state_dict: the released names and shapes.
        config: the released code's constructor keywords; None: what names and shapes tell, for a square image and the
            heads of the published sizes.
        release: "dit": the network reads steps, 999 at the noise, and its variance is returned; "sit": it reads the
            flow's time, and its variance is dropped. The names are the same in both.

    Returns:
        The model, on the CPU, in evaluation mode. It takes times in [0, 1], 0 at the noise, whatever the release.

    Raises:
        CheckpointError: a name is missing, extra or misshapen, or the names are those of another family.
        ConfigError: a keyword is missing or unknown, or a value is out of range.
    """
    return _model(state_dict, config, release, copy=True)


def load_released(
    path: str | os.PathLike[str],
    weights: WeightsPart = "ema",
    *,
    config: Mapping[str, Any] | None = None,
    release: str = "dit",
) -> DiT:
    """Read a released `.pt` file; nothing in it is run. See `from_released`."""
    return _model(read_weights(path, weights), config, release, copy=False)


def _model(state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None, release: str, *, copy: bool) -> DiT:
    if not isinstance(state_dict, Mapping) or not is_state(state_dict) or not NAMES.are_in(state_dict):
        came = list(state_dict)[:5] if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise CheckpointError(
            f"expected tensors with the released DiT names, such as 'blocks.0.attn.qkv.weight', got {came}; another "
            "family's files are read by its own from_released"
        )
    chosen = choose("release", release, _RELEASES)
    options = _inferred(state_dict) if config is None else _translated(config)
    learns = options.pop("learn_sigma")
    variance = "none" if not learns else "returned" if chosen == "dit" else "dropped"
    clock = "diffusion" if chosen == "dit" else "flow"
    return model_from(lambda: DiT(DiTConfig(**options, clock=clock, variance=variance)), state_dict, copy=copy)


def _translated(released: Mapping[str, Any]) -> dict[str, Any]:
    check_names(released, _KEYWORDS)
    given = {
        "input_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 1152, "depth": 28, "num_heads": 16,
        "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "num_classes": 1000, "learn_sigma": True, **released,
    }  # fmt: skip
    return {
        "img_size": given["input_size"],
        "patch_size": given["patch_size"],
        "in_chans": given["in_channels"],
        "dim": given["hidden_size"],
        "depth": given["depth"],
        "num_heads": given["num_heads"],
        "mlp_ratio": given["mlp_ratio"],
        "class_dropout": given["class_dropout_prob"],
        "num_classes": given["num_classes"],
        "learn_sigma": given["learn_sigma"],
    }


def _inferred(state: Mapping[str, Tensor]) -> dict[str, Any]:
    dim, channels, patch, _ = sizes_of(state, "x_embedder.proj.weight", 4)
    positions = sizes_of(state, "pos_embed", 3)[1]
    side = math.isqrt(positions)  # released models are square
    if side * side != positions:
        raise CheckpointError(f"pos_embed: expected a square grid, got {positions} positions; pass `config`")
    if dim not in _HEAD_WIDTHS:
        raise ConfigError(f"num_heads: the width {dim} is no published one, so that it cannot be told; pass `config`")
    blocks = (re.match(r"blocks\.(\d+)\.", name) for name in state)
    return {
        "img_size": side * patch,
        "patch_size": patch,
        "in_chans": channels,
        "dim": dim,
        "depth": 1 + max(int(block[1]) for block in blocks if block),
        "num_heads": _HEAD_WIDTHS[dim],
        "mlp_ratio": sizes_of(state, "blocks.0.mlp.fc1.weight", 2)[0] / dim,
        "num_classes": sizes_of(state, "y_embedder.embedding_table.weight", 2)[0] - 1,
        "learn_sigma": sizes_of(state, "final_layer.linear.weight", 2)[0] == 2 * channels * patch**2,
    }
