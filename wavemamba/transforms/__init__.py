"""Frequency transforms: a map of tokens to subbands and back, exactly. A new file here is a new transform."""

from wavemamba.registry import import_folder
from wavemamba.transforms.base import FrequencyTransform
from wavemamba.transforms.dct import BlockDCT
from wavemamba.transforms.haar import HaarPacket
from wavemamba.transforms.registry import frequency_transform, list_transforms, register_transform
from wavemamba.transforms.wavelets import WaveletPacket

import_folder(__name__, __path__)

__all__ = [
    "BlockDCT",
    "FrequencyTransform",
    "HaarPacket",
    "WaveletPacket",
    "frequency_transform",
    "list_transforms",
    "register_transform",
]
