"""Sequence mixers: (B, L, C) -> (B, L, C) in any scan order."""

from wavemamba.layers.mixers.mamba1 import MambaMixer

__all__ = ["MambaMixer"]
