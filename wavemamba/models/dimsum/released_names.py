"""What the released code calls a parameter, and what this library calls it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from wavemamba.models.dimsum.config import DiMSUMConfig

# Constants of the released code (filters, paths), and the condition projection inside its mixers, which its
# convolution overwrites before use, so that it never moved from its initial values.
_NOT_WEIGHTS = re.compile(r"\.dwt\.w_|\.idwt\.filters$|dct_conv|zigzag_paths|\.mixer\.cond_proj\.")

_TO_OWN = tuple(
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
        (r"^pos_cnn\.proj\.0\.", "positions.conv."),
        (r"^pos_cnn\.adaLN_modulation\.1\.", "positions.modulation."),
        (r"^pos_cnn\.", "positions."),
        (r"^(blocks\.\d+)\.mixer\.", r"\1.branch.step.mixer."),
        (r"\.spatial_mamba\.", ".spatial.step."),
        (r"\.freq_mamba\.complex_(weight|bias)_", r".frequency.\1"),
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
        (r"\.dt_proj\.bias$", ".dt_bias"),
    )
)

# The way back, for messages about what a file lacks.
_TO_RELEASED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^patch_embed\.", "x_embedder."),
        (r"^time_embed\.", "t_embedder."),
        (r"^label_embed\.table\.", "y_embedder.embedding_table."),
        (r"^head\.modulation\.", "final_layer.adaLN_modulation.1."),
        (r"^head\.", "final_layer."),
        (r"^final_norm\.", "norm_f."),
        (r"^(attentions\.\d+)\.attention\.", r"\1.attn."),
        (r"^attentions\.", "attn_block."),
        (r"^positions\.conv\.", "pos_cnn.proj.0."),
        (r"^positions\.modulation\.", "pos_cnn.adaLN_modulation.1."),
        (r"^positions\.", "pos_cnn."),
        (r"\.branch\.(step\.)?", "."),
        (r"\.spatial\.step\.", ".spatial_mamba."),
        (r"\.frequency\.step\.", ".freq_mamba."),
        (r"\.frequency\.(weight|bias)(\d)$", r".freq_mamba.complex_\1_\2"),
        (r"\.fusion\.spatial_qkv\.", ".proj.qkv1."),
        (r"\.fusion\.frequency_qkv\.", ".proj.qkv2."),
        (r"\.fusion\.proj\.", ".proj.proj."),
        (r"\.norm_mlp\.", ".norm_2."),
        (r"\.modulation\.linear\.", ".adaLN_modulation.1."),
        (r"\.conv_(weight|bias)$", r".conv1d.\1"),
        (r"\.dt_bias$", ".dt_proj.bias"),
        (r"\.directions\.1\.A_log$", ".A_b_log"),
        (r"\.directions\.1\.(\w+)", r".\1_b"),
        (r"\.directions\.0\.", "."),
    )
)


def is_released(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the released code."""
    return any(name.startswith(("x_embedder.", "t_embedder.", "final_layer.")) for name in state)


def rename(
    state: Mapping[str, Tensor], config: DiMSUMConfig, transformers: int, *, has_table: bool = True
) -> tuple[dict[str, Tensor], Callable[[str], str]]:
    """Give released parameters this library's names and shapes.

    Args:
        state: the released names.
        config: of the model that they are for.
        transformers: how many transformer blocks it has.
        has_table: whether it has a table of positions; the released code keeps one that it does not read.

    Returns:
        The parameters, and a function from a name of this library to the released one.
    """
    height, width = config.grid_size
    renamed: dict[str, Tensor] = {}
    called: dict[str, str] = {}
    for released, tensor in state.items():
        if not is_weight(released):
            continue
        name = own_name(released)
        if name == "pos_embed" and not has_table:
            continue
        if name.endswith(".conv_weight") and tensor.dim() == 3:
            tensor = tensor.squeeze(1)  # (E, 1, width): a depthwise convolution has one input channel
        if name == "pos_embed" and tensor.dim() == 3:
            tensor = _on_grid(tensor, height, width)
        transformer = re.match(r"attentions\.(\d+)\.", name)
        if transformer and int(transformer[1]) >= transformers > 0:
            continue  # the released code makes one more independent transformer than it has places for
        for own, part, rows in _steps(name, tensor, config):
            renamed[own], called[own] = part, released + rows
    return renamed, lambda name: called.get(name) or released_name(name, config)


_OWN_MODULATION = re.compile(r"^(blocks\.\d+)\.modulation\.(.*)")
_FEED_FORWARD = re.compile(r"^(blocks\.\d+)\.(norm_mlp|mlp|modulation)\.")


def _steps(name: str, tensor: Tensor, config: DiMSUMConfig) -> Iterator[tuple[str, Tensor, str]]:
    """Where the parameter of a block goes: with one branch, both steps share one layer of modulation in the released
    code, and one after the transform has its feed-forward layer in the branch.

    Yields:
        This library's name, the tensor, and which rows of the released one it is.
    """
    modulation = None if config.has_both_branches else _OWN_MODULATION.match(name)
    if modulation:
        first = f"{modulation[1]}.branch.step.modulation.{modulation[2]}"
        if config.mlp == "none":
            yield first, tensor, ""
            return
        rows = 3 * config.dim
        yield first, tensor[:rows], _rows(first, config)
        tensor = tensor[rows:]
    own = name
    if config.mlp_domain == "frequency":
        own = _FEED_FORWARD.sub(r"\1.branch.\2.", name)
    yield own, tensor, _rows(own, config)


def _rows(own: str, config: DiMSUMConfig) -> str:
    """Which rows of a released layer of modulation a parameter is."""
    if config.has_both_branches or config.mlp == "none" or not re.match(r"blocks\.\d+\..*modulation\.", own):
        return ""
    first = ".step." in own
    return f" rows {0 if first else 3 * config.dim} to {(3 if first else 6) * config.dim - 1}"


def _on_grid(position: Tensor, height: int, width: int) -> Tensor:
    side = math.isqrt(position.shape[1])
    if position.shape[1] == height * width:
        return position.unflatten(1, (height, width))
    # Of another size than the model: released models are square.
    return position.unflatten(1, (side, side)) if side > 0 and position.shape[1] == side * side else position


def is_weight(released: str) -> bool:
    """Whether a released name is that of a parameter with an effect."""
    return _NOT_WEIGHTS.search(released) is None


def own_name(released: str) -> str:
    """This library's name of a released parameter."""
    for pattern, replacement in _TO_OWN:
        released = pattern.sub(replacement, released)
    return released


def released_name(own: str, config: DiMSUMConfig) -> str:
    """The released name of a parameter of a model with this configuration: `own_name` undone."""
    rows = _rows(own, config)
    for pattern, replacement in _TO_RELEASED:
        own = pattern.sub(replacement, own)
    if config.attention_sharing == "shared":
        own = own.replace("attn_block.0.", "attn_block.")
    if config.mlp != "plain":
        own = own.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
    return own + rows
