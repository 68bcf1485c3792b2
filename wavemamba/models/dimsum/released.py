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

_REQUIRED = ("img_resolution", "patch_size", "hidden_size", "depth", "num_classes")
_SCAN_TYPES = ("none", "v2", "sweep_8", "zigma_8", "jpeg_8")
_KEYWORDS = {
    "img_resolution", "patch_size", "in_channels", "hidden_size", "depth", "num_classes", "label_dropout", "rms_norm",
    "fused_add_norm", "residual_in_fp32", "learnable_pe", "cond_mamba", "block_type", "scan_type", "pe_type",
    "use_attn_every_k_layers", "use_independent_attn", "drop_path", "use_final_norm", "scanning_continuity",
    "use_gated_mlp", "learn_sigma",
}  # fmt: skip


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
    path: str | os.PathLike[str], weights: WeightsPart = "ema", *, dtype: torch.dtype | None = None
) -> DiMSUM:
    """Read a released checkpoint: `.pt` (`epoch, model, ema, opt, args`), `.bin` or `.safetensors`.

    Nothing in the file is run: only tensors, plain containers and `argparse.Namespace` are accepted.

    Args:
        path: the file.
        weights: which weights of a `.pt` file to take: "ema", the averaged ones, or "model"; "ema" takes the model's
            where there is no average.
        dtype: of the model; None: as in the file.

    Returns:
        The model, on the CPU, in evaluation mode; see `from_released`.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or does not fit.
        ConfigError: `weights` is neither.
    """
    state = read_weights(path, weights)
    _expect_released(state)
    options = _infer(state)
    return model_from(lambda: DiMSUM(options), state, dtype=dtype)


def _expect_released(state: object) -> None:
    if not isinstance(state, Mapping) or not is_state(state) or not is_released(state):
        came = list(state)[:5] if isinstance(state, Mapping) else type(state).__name__
        raise CheckpointError(
            f"expected tensors with the released DiMSUM names, such as 'x_embedder.proj.weight', got {came}; a folder "
            "saved by this library is read by DiMSUM.from_pretrained"
        )


def _translate(released: Mapping[str, Any]) -> DiMSUMConfig:
    check_names(released, _KEYWORDS)
    missing = [name for name in _REQUIRED if name not in released]
    if missing:
        raise ConfigError(f"config: expected the keywords {', '.join(_REQUIRED)}, got none for {', '.join(missing)}")
    scan_type = released.get("scan_type", "none")
    for name, default, known in (
        ("block_type", "combined", ("combined",)),
        ("pe_type", "ape", ("ape",)),
        ("scan_type", "none", _SCAN_TYPES),
    ):
        if released.get(name, default) not in known:
            raise CheckpointError(
                f"{name}: expected {' or '.join(known)}, got {released[name]!r}; this library has no other"
            )
    every, dropout = released.get("use_attn_every_k_layers", 4), released.get("label_dropout", 0.0)
    for name, value in (("depth", released["depth"]), ("use_attn_every_k_layers", every), ("label_dropout", dropout)):
        if not isinstance(value, int | float):
            raise ConfigError(f"{name}: expected a number, got {value!r}")
    path = scan_type.removesuffix("_8") if scan_type.endswith("_8") else "none"
    channels, depth, every = released.get("in_channels", 4), released["depth"], max(every, 0)
    independent = bool(released.get("use_independent_attn", False))
    return DiMSUMConfig(
        img_size=(released["img_resolution"],) * 2,
        in_chans=channels,
        out_chans=2 * channels if released.get("learn_sigma", False) else None,
        patch_size=released["patch_size"],
        dim=released["hidden_size"],
        depth=depth - depth // every if independent and every else depth,
        num_classes=released["num_classes"],
        class_dropout=max(dropout, 0.0),
        drop_path_rate=released.get("drop_path", 0.0),
        attention_every=every,
        attention_sharing="independent" if independent else "shared",
        mlp="gated" if released.get("use_gated_mlp", True) else "plain",
        norm="rms" if released.get("rms_norm", True) else "layer",
        final_norm=released.get("use_final_norm", False),
        scan_path=path,
        snake=released.get("scanning_continuity", False),
        bidirectional=scan_type == "v2",
    )


def _infer(state: Mapping[str, Tensor]) -> DiMSUMConfig:
    if not _has(state, r"blocks\.0\.spatial_mamba\.mixer\.") or not _has(state, r"blocks\.0\.freq_mamba\.mixer\."):
        raise CheckpointError("expected blocks with a spatial and a frequency mixer; pass `config` for another variant")
    if _has(state, r"zigzag_paths") or _has(state, r"dct_conv"):
        raise CheckpointError("the names do not tell which scan paths or filters were used; pass `config`")
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
    }
    try:
        return DiMSUMConfig(**options)
    except ConfigError as error:
        raise CheckpointError(f"the shapes tell of no model that can be built: {error}") from error


def _has(state: Mapping[str, Tensor], pattern: str) -> bool:
    return any(re.search(pattern, name) for name in state)
