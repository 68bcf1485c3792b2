"""Layers that the blocks are made of."""

from wavemamba.layers.attention import (
    CrossAttention,
    FullAttention,
    LinearAttention,
    SelfAttention,
    WindowAttention,
    attend,
)
from wavemamba.layers.drop_path import DropPath
from wavemamba.layers.embeddings import LabelEmbed, PatchEmbed, TimeEmbed
from wavemamba.layers.mixers import MambaMixer, MambaState, Mixer, S4DMixer
from wavemamba.layers.mixers.selective_ssm import SelectiveSSM
from wavemamba.layers.mlp import GatedMlp, Mlp, make_mlp
from wavemamba.layers.modulation import AdaLN, Modulation, gated_residual, modulate
from wavemamba.layers.norm import LayerNorm, RMSNorm, add_norm, make_norm
from wavemamba.layers.positions import ConditionalPositions, RotaryPositions
from wavemamba.layers.weight_decay import parameter_groups, undecayed_names

__all__ = [
    "AdaLN",
    "ConditionalPositions",
    "CrossAttention",
    "DropPath",
    "FullAttention",
    "GatedMlp",
    "LabelEmbed",
    "LayerNorm",
    "LinearAttention",
    "MambaMixer",
    "MambaState",
    "Mixer",
    "Mlp",
    "Modulation",
    "PatchEmbed",
    "RMSNorm",
    "RotaryPositions",
    "S4DMixer",
    "SelectiveSSM",
    "SelfAttention",
    "TimeEmbed",
    "WindowAttention",
    "add_norm",
    "attend",
    "gated_residual",
    "make_mlp",
    "make_norm",
    "modulate",
    "parameter_groups",
    "undecayed_names",
]
