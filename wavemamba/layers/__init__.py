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
from wavemamba.layers.mixers import (
    AttentionMixer,
    AttentionState,
    GLAMixer,
    GLAState,
    Mamba2Mixer,
    MambaMixer,
    MambaState,
    Mixer,
    S4DMixer,
    SequenceMixer,
)
from wavemamba.layers.mixers.selective_ssm import SelectiveSSM
from wavemamba.layers.mlp import GatedMlp, Mlp, make_mlp
from wavemamba.layers.modulation import AdaLN, Modulation, gated_residual, modulate
from wavemamba.layers.norm import LayerNorm, RMSNorm, add_norm, make_norm
from wavemamba.layers.positions import ConditionalPositions, RotaryPositions
from wavemamba.layers.weight_decay import parameter_groups, undecayed_names

__all__ = [
    "AdaLN",
    "AttentionMixer",
    "AttentionState",
    "ConditionalPositions",
    "CrossAttention",
    "DropPath",
    "FullAttention",
    "GLAMixer",
    "GLAState",
    "GatedMlp",
    "LabelEmbed",
    "LayerNorm",
    "LinearAttention",
    "Mamba2Mixer",
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
    "SequenceMixer",
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
