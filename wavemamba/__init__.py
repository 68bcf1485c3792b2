"""Mamba and wavelets for vision and diffusion networks."""

from wavemamba import ops
from wavemamba.blocks import (
    DiMSUMBlock,
    SharedAttention,
    SpatialFrequencyFusion,
    SpatialMambaBlock,
    WaveletMambaBlock,
)
from wavemamba.errors import BackendUnavailable, CheckpointError, ConfigError, ShapeError, WavemambaError
from wavemamba.layers import MambaMixer
from wavemamba.models import DiMSUM, DiMSUMConfig, create_model, list_models
from wavemamba.scans import ScanOrder, register_scan_order, scan_order
from wavemamba.transforms import frequency_transform

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "CheckpointError",
    "ConfigError",
    "DiMSUM",
    "DiMSUMBlock",
    "DiMSUMConfig",
    "MambaMixer",
    "ScanOrder",
    "ShapeError",
    "SharedAttention",
    "SpatialFrequencyFusion",
    "SpatialMambaBlock",
    "WaveletMambaBlock",
    "WavemambaError",
    "create_model",
    "frequency_transform",
    "list_models",
    "ops",
    "register_scan_order",
    "scan_order",
]
