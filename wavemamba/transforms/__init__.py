"""Frequency transforms: a map of tokens to subbands and back, exactly."""

from wavemamba.transforms.transform import BlockDCT, FrequencyTransform, HaarPacket, WaveletPacket, frequency_transform

__all__ = ["BlockDCT", "FrequencyTransform", "HaarPacket", "WaveletPacket", "frequency_transform"]
