"""Reading the released DiMSUM weights, without running anything from a file."""

from __future__ import annotations

import argparse
import math
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wavemamba.errors import CheckpointError
from wavemamba.models.config import DiMSUMConfig, check_names
from wavemamba.models.dimsum import DiMSUM
from wavemamba.models.saving import load_strictly, read_safetensors

# Constants of the released code (filters, paths), and the condition projection inside its mixers, which its
# convolution overwrites before use, so that it never moved from its initial values.
_NOT_WEIGHTS = re.compile(r"\.dwt\.w_|\.idwt\.filters$|dct_conv|zigzag_paths|\.mixer\.cond_proj\.")

_RENAMED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^x_embedder\.", "patch_embed."),
        (r"^t_embedder\.", "time_embed."),
        (r"^y_embedder\.embedding_table\.", "label_embed.table."),
        (r"^attn_block\.(?=\d)", "attentions."),
        (r"^attn_block\.", "attentions.0."),
        (r"^(attentions\.\d+)\.attn\.", r"\1.attention."),
        (r"^final_layer\.adaLN_modulation\.1\.", "head.modulation."),
        (r"^final_layer\.", "head."),
        (r"^norm_f\.", "final_norm."),
        (r"\.spatial_mamba\.", ".spatial.step."),
        (r"\.freq_mamba\.", ".frequency.step."),
        (r"^(blocks\.\d+)\.proj\.qkv1\.", r"\1.fusion.spatial_qkv."),
        (r"^(blocks\.\d+)\.proj\.qkv2\.", r"\1.fusion.frequency_qkv."),
        (r"^(blocks\.\d+)\.proj\.proj\.", r"\1.fusion.proj."),
        (r"\.norm_2\.", ".norm_mlp."),
        (r"\.adaLN_modulation\.1\.", ".modulation.linear."),
        (r"\.mlp\.w12\.", ".mlp.fc1."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
        (r"\.mixer\.A_b_log$", ".mixer.directions.1.A_log"),
        (r"\.mixer\.(D|conv1d|x_proj|dt_proj)_b\b", r".mixer.directions.1.\1"),
        (r"\.mixer\.(A_log|D|conv1d|x_proj|dt_proj)\b", r".mixer.directions.0.\1"),
        (r"\.conv1d\.(weight|bias)$", r".conv_\1"),
    )
)

_KEYWORDS = {
    "img_resolution", "patch_size", "in_channels", "hidden_size", "depth", "num_classes", "label_dropout", "rms_norm",
    "fused_add_norm", "residual_in_fp32", "learnable_pe", "cond_mamba", "block_type", "scan_type", "pe_type",
    "use_attn_every_k_layers", "use_independent_attn", "drop_path", "use_final_norm", "scanning_continuity",
    "use_gated_mlp", "learn_sigma",
}  # fmt: skip


def from_released(state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> DiMSUM:
    """Build a model from the released code's parameters.

    The condition's projections inside the mixers, which have no effect there, and constant filters are dropped.

    Args:
        state_dict: the released names and shapes.
        config: the released code's constructor keywords; None: what names and shapes tell is inferred from them, a
            square image, and the published recipe for the rest (attention every 4 blocks, Haar bands, no paths).

    Returns:
        The model, on the CPU, in evaluation mode. A model with one class and no null class is unconditional.

    Raises:
        CheckpointError: a name is missing, extra or misshapen, or the variant is none that this library has.
    """
    names = list(state_dict)
    if "pos_embed" not in state_dict or "x_embedder.proj.weight" not in state_dict:
        raise CheckpointError(f"expected the released DiMSUM names, such as 'pos_embed', got {names[:5]}")
    model = DiMSUM(_infer(state_dict) if config is None else _translate(config))
    load_strictly(model, _rename(state_dict, model))
    return model.eval()


def load_released(path: str | os.PathLike[str], weights: Literal["ema", "model"] = "ema") -> DiMSUM:
    """Read a released checkpoint: `.pt` (`epoch, model, ema, opt, args`), `.bin` or `.safetensors`.

    Nothing in the file is run: only tensors, plain containers and `argparse.Namespace` are accepted.

    Args:
        path: the file.
        weights: which weights of a `.pt` file to take, where it has both.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or does not fit.
    """
    return from_released(read_weights(path, weights))


def read_weights(path: str | os.PathLike[str], weights: Literal["ema", "model"] = "ema") -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file by name; see `load_released`."""
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: expected a checkpoint file, found none")
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file}: expected a whole checkpoint of tensors alone, got: {error}") from error
    if isinstance(content, dict) and not _is_state(content):
        for key in (weights, "ema", "model", "state_dict"):
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    if not isinstance(content, dict) or not _is_state(content):
        raise CheckpointError(f"{file}: expected named tensors, or a dict with 'ema' or 'model', got {type(content)}")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def is_released(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the released code."""
    return "x_embedder.proj.weight" in state_dict


def load_into(model: DiMSUM, path: str | os.PathLike[str]) -> None:
    """Copy a checkpoint file, in the released names or this library's own, into a model.

    Raises:
        CheckpointError: a name is missing, extra or misshapen; the model is left as it was.
    """
    state = read_weights(path)
    load_strictly(model, _rename(state, model) if is_released(state) else state)


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _rename(state: Mapping[str, Tensor], model: DiMSUM) -> dict[str, Tensor]:
    grid = model.config.grid_size
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _NOT_WEIGHTS.search(name):
            continue
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        if name.endswith(".conv_weight") and tensor.dim() == 3:
            tensor = tensor.squeeze(1)  # (E, 1, width): a depthwise convolution has one input channel
        if name == "pos_embed" and tensor.dim() == 3 and tensor.shape[1] == grid[0] * grid[1]:
            tensor = tensor.unflatten(1, grid)
        transformer = re.match(r"attentions\.(\d+)\.", name)
        if transformer and int(transformer[1]) >= len(model.attentions) > 0:
            continue  # the released code makes one more independent transformer than it has places for
        renamed[name] = tensor
    return renamed


def _translate(released: Mapping[str, Any]) -> DiMSUMConfig:
    check_names(released, _KEYWORDS)
    block_type, scan_type = released.get("block_type", "combined"), released.get("scan_type", "none")
    if block_type != "combined":
        raise CheckpointError(f"block_type: expected 'combined', got {block_type!r}")
    if released.get("pe_type", "ape") != "ape":
        raise CheckpointError(f"pe_type: expected 'ape', got {released['pe_type']!r}")
    path = scan_type.removesuffix("_8") if scan_type.endswith("_8") else "none"
    if scan_type not in ("none", "v2", "sweep_8", "zigma_8", "jpeg_8"):
        raise CheckpointError(f"scan_type: expected none, v2, sweep_8, zigma_8 or jpeg_8, got {scan_type!r}")
    channels = released.get("in_channels", 4)
    every = max(released.get("use_attn_every_k_layers", 4), 0)
    independent = bool(released.get("use_independent_attn", False))
    depth = released["depth"]
    return DiMSUMConfig(
        img_size=(released["img_resolution"],) * 2,
        in_chans=channels,
        out_chans=2 * channels if released.get("learn_sigma", False) else None,
        patch_size=released["patch_size"],
        dim=released["hidden_size"],
        depth=depth - depth // every if independent and every else depth,
        num_classes=released["num_classes"],
        class_dropout=max(released.get("label_dropout", 0.0), 0.0),
        drop_path_rate=released.get("drop_path", 0.0),
        attention_every=every,
        attention_sharing="independent" if independent else "shared",
        gated_mlp=released.get("use_gated_mlp", True),
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
    dim, channels, patch = state["x_embedder.proj.weight"].shape[:3]
    side = math.isqrt(state["pos_embed"].shape[1])  # released models are square
    if side * side != state["pos_embed"].shape[1]:
        raise CheckpointError(f"pos_embed: expected a square grid, got {state['pos_embed'].shape[1]} positions")
    rows = state["y_embedder.embedding_table.weight"].shape[0] if _has(state, r"^y_embedder\.") else 0
    out_width = state["final_layer.linear.weight"].shape[0] if "final_layer.linear.weight" in state else 0
    return DiMSUMConfig(
        img_size=(side * patch, side * patch),
        in_chans=channels,
        out_chans=None if out_width == channels * patch**2 else out_width // patch**2 or None,
        patch_size=patch,
        dim=dim,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        num_classes=rows - 1 if rows > 1 else rows,
        class_dropout=0.15 if rows > 1 else 0.0,
        attention_every=4 if _has(state, r"^attn_block\.") else 0,
        attention_sharing="independent" if _has(state, r"^attn_block\.0\.") else "shared",
        norm="layer" if "blocks.0.norm.bias" in state else "rms",
        final_norm="norm_f.weight" in state,
        bidirectional=_has(state, r"\.A_b_log$"),
    )


def _has(state: Mapping[str, Tensor], pattern: str) -> bool:
    return any(re.search(pattern, name) for name in state)
