"""Layers that the blocks are made of."""

from wavemamba.layers.attention import SelfAttention, attend
from wavemamba.layers.embeddings import LabelEmbed, PatchEmbed, TimeEmbed
from wavemamba.layers.mixers.mamba1 import MambaMixer, SelectiveSSM
from wavemamba.layers.mlp import make_mlp
from wavemamba.layers.modulation import AdaLN, Modulation, gated_residual, modulate
from wavemamba.layers.norm import LayerNorm, RMSNorm, add_norm, make_norm

__all__ = [
    "AdaLN",
    "LabelEmbed",
    "LayerNorm",
    "MambaMixer",
    "Modulation",
    "PatchEmbed",
    "RMSNorm",
    "SelectiveSSM",
    "SelfAttention",
    "TimeEmbed",
    "add_norm",
    "attend",
    "gated_residual",
    "make_mlp",
    "make_norm",
    "modulate",
]
