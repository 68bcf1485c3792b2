"""Sequence mixers: (B, L, C) -> (B, L, C) in any scan order."""

from wavemamba.layers.mixers.attention import AttentionMixer, AttentionState
from wavemamba.layers.mixers.convolved import MambaState
from wavemamba.layers.mixers.gla import GLAMixer, GLAState
from wavemamba.layers.mixers.mamba1 import MambaMixer
from wavemamba.layers.mixers.mamba2 import Mamba2Mixer
from wavemamba.layers.mixers.protocol import Mixer, expect_mixer
from wavemamba.layers.mixers.s4d import S4DMixer
from wavemamba.layers.mixers.sequence_mixer import SequenceMixer

__all__ = [
    "AttentionMixer",
    "AttentionState",
    "GLAMixer",
    "GLAState",
    "Mamba2Mixer",
    "MambaMixer",
    "MambaState",
    "Mixer",
    "S4DMixer",
    "SequenceMixer",
    "expect_mixer",
]
