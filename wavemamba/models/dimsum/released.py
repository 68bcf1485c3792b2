"""The released DiMSUM weights as models of this library."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wavemamba.errors import CheckpointError, ConfigError
from wavemamba.models.dimsum.config import DiMSUMConfig
from wavemamba.models.dimsum.model import DiMSUM
from wavemamba.models.dimsum.released_names import is_released
from wavemamba.models.loading import model_from
from wavemamba.models.weights import WeightsPart, is_state, read_weights, sizes_of
from wavemamba.names import check_names

_DEFAULTS: dict[str, Any] = {
    "in_channels": 4, "label_dropout": 0.0, "rms_norm": True, "learnable_pe": True, "block_type": "combined",
    "scan_type": "none", "pe_type": "ape", "use_attn_every_k_layers": 4, "use_independent_attn": False,
    "drop_path": 0.0, "use_final_norm": False, "scanning_continuity": False, "use_gated_mlp": True,
    "learn_sigma": False,
}  # fmt: skip
"""Of the published recipe."""
_REQUIRED = ("img_resolution", "patch_size", "hidden_size", "depth", "num_classes")
_SCAN_TYPES = ("none", "v2", "sweep_8", "zigma_8", "jpeg_8")
_POSITIONS = {"ape": "learnt", "rope": "rotary", "cpe": "conditional"}
_COMPOSITIONS: dict[str, dict[str, Any]] = {
    "combined": {},
    "combined_fourier": {
        "transform": "dct",
        "layout": "interleaved",
        "band_scaling": "orthonormal",
        "frequency_scan": "jpeg",
    },
    "combined_einfft": {"frequency": "einfft"},
    "raw": {"frequency": "none", "mlp": "none"},
    "linear": {"frequency": "none"},
    "window": {"frequency": "none", "spatial_scan": "window(window=4)", "spatial_alternation": "transpose"},
    "wave": {
        "spatial": "none",
        "frequency_scan": "raster",
        "frequency_alternation": "transpose_reverse",
        "mlp_domain": "frequency",
    },
}
"""What each block type of the released code is made of."""
_KEYWORDS = {*_REQUIRED, *_DEFAULTS, "fused_add_norm", "residual_in_fp32", "cond_mamba"}


def from_released(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, *, dtype: torch.dtype | None = None
) -> DiMSUM:
    """Build a model from the released code's parameters.

    The condition's projections inside the mixers, which have no effect there, and constant filters are dropped.

    Args:
        state_dict: the released names and shapes.
        config: the released code's constructor keywords; None: what names and shapes tell is inferred from them, a
            square image, and the published recipe for the rest (attention every 4 blocks, Haar bands, no paths).
        dtype: of the model; None: as the parameters are.

    Returns:
        The model, on the CPU, in evaluation mode. A model with one class and no null class is unconditional.

    Raises:
        CheckpointError: a name is missing, extra or misshapen, or the variant is none that this library has.
        ConfigError: a keyword is missing or unknown, or a value is out of range.
    """
    _expect_released(state_dict)
    options = _infer(state_dict) if config is None else _translate(config)
    return model_from(lambda: DiMSUM(options), state_dict, dtype=dtype, copy=True)


def load_released(
    path: str | os.PathLike[str],
    weights: WeightsPart = "ema",
    *,
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> DiMSUM:
    """Read a released checkpoint: `.pt` (`epoch, model, ema, opt, args`), `.bin` or `.safetensors`.

    Nothing in the file is run: only tensors, plain containers and `argparse.Namespace` are accepted.

    Args:
        path: the file.
        weights: which weights of a `.pt` file to take: "ema", the averaged ones, or "model"; "ema" takes the model's
            where there is no average.
        config: see `from_released`.
        dtype: of the model; None: as in the file.

    Returns:
        The model, on the CPU, in evaluation mode; see `from_released`.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or does not fit.
        ConfigError: `weights` is neither, or `config` asks for what this library has not.
    """
    state = read_weights(path, weights)
    _expect_released(state)
    options = _infer(state) if config is None else _translate(config)
    return model_from(lambda: DiMSUM(options), state, dtype=dtype)


def _expect_released(state: object) -> None:
    if not isinstance(state, Mapping) or not is_state(state) or not is_released(state):
        came = list(state)[:5] if isinstance(state, Mapping) else type(state).__name__
        raise CheckpointError(
            f"expected tensors with the released DiMSUM names, such as 'x_embedder.proj.weight', got {came}; a folder "
            "saved by this library is read by DiMSUM.from_pretrained"
        )
    other = _other_family(state)
    if other is not None:
        raise CheckpointError(
            f"expected released DiMSUM weights, got names of a {other}; wavemamba.models.{other.lower()} reads them"
        )


def _other_family(state: Mapping[str, Tensor]) -> str | None:
    if _has(state, r"^blocks\.\d+\.attn\."):
        return "DiT"
    own_head = _has(state, r"^final_layer\.adaLN_modulation\.") or not _has(state, r"^final_layer\.linear\.")
    return None if own_head or not _has(state, r"^blocks\.\d+\.mixer\.") else "ZigMa"


def _translate(released: Mapping[str, Any]) -> DiMSUMConfig:
    check_names(released, _KEYWORDS)
    missing = [name for name in _REQUIRED if name not in released]
    if missing:
        raise ConfigError(f"config: expected the keywords {', '.join(_REQUIRED)}, got none for {', '.join(missing)}")
    given = {**_DEFAULTS, **released}
    for name, known in (
        ("block_type", tuple(_COMPOSITIONS)),
        ("pe_type", tuple(_POSITIONS)),
        ("scan_type", _SCAN_TYPES),
    ):
        if given[name] not in known:
            raise CheckpointError(
                f"{name}: expected {' or '.join(known)}, got {given[name]!r}; this library has no other"
            )
    for name in ("depth", "use_attn_every_k_layers", "label_dropout"):
        if not isinstance(given[name], int | float):
            raise ConfigError(f"{name}: expected a number, got {given[name]!r}")
    scan_type, channels, every = given["scan_type"], given["in_channels"], max(given["use_attn_every_k_layers"], 0)
    depth = 3 * given["depth"] if given["block_type"] == "raw" else given["depth"]  # its blocks are a third as large
    independent = bool(given["use_independent_attn"])
    positions = _POSITIONS[given["pe_type"]]
    options: dict[str, Any] = {
        "img_size": (given["img_resolution"],) * 2,
        "in_chans": channels,
        "out_chans": 2 * channels if given["learn_sigma"] else None,
        "patch_size": given["patch_size"],
        "dim": given["hidden_size"],
        "depth": depth - depth // every if independent and every else depth,
        "num_classes": given["num_classes"],
        "class_dropout": max(given["label_dropout"], 0.0),
        "drop_path_rate": given["drop_path"],
        "positions": "sincos" if positions == "learnt" and not given["learnable_pe"] else positions,
        "attention_every": every,
        "attention_sharing": "independent" if independent else "shared",
        "norm": "rms" if given["rms_norm"] else "layer",
        "final_norm": given["use_final_norm"],
        "scan_path": scan_type.removesuffix("_8") if scan_type.endswith("_8") else "none",
        "bidirectional": scan_type == "v2",
    }
    return DiMSUMConfig(**options, **_composition(given))


def _composition(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say what the blocks are made of."""
    kind, alternates = given["block_type"], given["scan_type"] == "none"
    options: dict[str, Any] = {"mlp": "gated" if given["use_gated_mlp"] else "plain", **_COMPOSITIONS[kind]}
    for name, only, kinds in (
        ("scan_type", "none", ("combined_fourier",)),  # its frequency branch has paths of its own
        ("scanning_continuity", False, ("combined_fourier",)),
        ("use_gated_mlp", True, ("raw", "linear", "window", "wave")),  # there it is the transformer's alone
    ):
        if kind in kinds and given[name] != only:
            raise CheckpointError(
                f"{name}: expected {only!r} with block_type={kind!r}, got {given[name]!r}; this library has no other"
            )
    if not alternates:
        options = {name: value for name, value in options.items() if not name.endswith("_alternation")}
    if given["scanning_continuity"] and kind == "wave":
        options["frequency_scan"] = "snake"
    elif given["scanning_continuity"] and kind != "window":  # where it has no effect
        options["snake"] = True
    return options


def _infer(state: Mapping[str, Tensor]) -> DiMSUMConfig:
    if _has(state, r"zigzag_paths"):
        raise CheckpointError("the names do not tell which scan paths were used; pass `config`")
    dim, channels, patch, _ = sizes_of(state, "x_embedder.proj.weight", 4)
    if not patch:
        raise CheckpointError("x_embedder.proj.weight: expected patches of a pixel or more, got none")
    positions = sizes_of(state, "pos_embed", 3)[1]
    side = math.isqrt(positions)  # released models are square
    if side * side != positions:
        raise CheckpointError(f"pos_embed: expected a square grid, got {positions} positions; pass `config`")
    rows = sizes_of(state, "y_embedder.embedding_table.weight", 2)[0]
    out_width = sizes_of(state, "final_layer.linear.weight", 2)[0]
    blocks = (re.match(r"blocks\.(\d{1,9})\.", name) for name in state)
    options: dict[str, Any] = {
        "img_size": (side * patch, side * patch),
        "in_chans": channels,
        "out_chans": None if out_width == channels * patch**2 else out_width // patch**2 or None,
        "patch_size": patch,
        "dim": dim,
        "depth": 1 + max(int(block[1]) for block in blocks if block),
        "num_classes": rows - 1 if rows > 1 else rows,
        "class_dropout": 0.15 if rows > 1 else 0.0,
        "attention_every": 4 if _has(state, r"^attn_block\.") else 0,
        "attention_sharing": "independent" if _has(state, r"^attn_block\.0\.") else "shared",
        "norm": "layer" if "blocks.0.norm.bias" in state else "rms",
        "final_norm": "norm_f.weight" in state,
        "bidirectional": _has(state, r"\.A_b_log$"),
        "positions": "conditional" if _has(state, r"^pos_cnn\.") else "learnt",
        **_COMPOSITIONS[_block_type(state, dim)],
    }
    try:
        return DiMSUMConfig(**options)
    except ConfigError as error:
        raise CheckpointError(f"the shapes tell of no model that can be built: {error}") from error


def _block_type(state: Mapping[str, Tensor], dim: int) -> str:
    if _has(state, r"^blocks\.0\.spatial_mamba\."):
        if _has(state, r"^blocks\.0\.freq_mamba\.complex_weight"):
            return "combined_einfft"
        return "combined_fourier" if _has(state, r"^blocks\.0\.freq_mamba\.dct_conv\.") else "combined"
    if _has(state, r"^blocks\.0\.dwt\."):
        return "wave"
    if sizes_of(state, "blocks.0.adaLN_modulation.1.weight", 2)[0] == 3 * dim:
        return "raw"
    raise CheckpointError("the names do not tell whether the blocks are linear, window or wave ones; pass `config`")


def _has(state: Mapping[str, Tensor], pattern: str) -> bool:
    return any(re.search(pattern, name) for name in state)
