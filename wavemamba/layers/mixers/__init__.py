"""Sequence mixers: (B, L, C) -> (B, L, C) in any scan order."""

from wavemamba.layers.mixers.mamba1 import MambaMixer
from wavemamba.layers.mixers.protocol import Mixer, expect_mixer
from wavemamba.layers.mixers.s4d import S4DMixer
from wavemamba.layers.mixers.selective_ssm import MambaState

__all__ = ["MambaMixer", "MambaState", "Mixer", "S4DMixer", "expect_mixer"]
