"""Frequency transforms: a map of tokens to subbands and back, exactly."""

from wavemamba.transforms.base import FrequencyTransform
from wavemamba.transforms.kinds.dct import BlockDCT
from wavemamba.transforms.kinds.haar import HaarPacket
from wavemamba.transforms.kinds.wavelets import WaveletPacket
from wavemamba.transforms.registry import frequency_transform, list_transforms, register_transform

__all__ = [
    "BlockDCT",
    "FrequencyTransform",
    "HaarPacket",
    "WaveletPacket",
    "frequency_transform",
    "list_transforms",
    "register_transform",
]
