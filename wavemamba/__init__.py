"""Mamba and wavelets for vision and diffusion networks."""

from wavemamba import ops
from wavemamba.blocks import (
    DiMSUMBlock,
    SharedAttention,
    SpatialFrequencyFusion,
    SpatialMambaBlock,
    WaveletMambaBlock,
)
from wavemamba.errors import BackendUnavailable, CheckpointError, ConfigError, ShapeError, SolverError, WavemambaError
from wavemamba.integrations.timm import register_in_timm
from wavemamba.layers import MambaMixer
from wavemamba.models import DiMSUM, DiMSUMConfig, create_model, list_models, register_model
from wavemamba.sampling import Sampler
from wavemamba.scans import ScanOrder, register_scan_order, scan_order
from wavemamba.transforms import frequency_transform, register_transform
from wavemamba.version import __version__

__all__ = [
    "BackendUnavailable",
    "CheckpointError",
    "ConfigError",
    "DiMSUM",
    "DiMSUMBlock",
    "DiMSUMConfig",
    "MambaMixer",
    "Sampler",
    "ScanOrder",
    "ShapeError",
    "SharedAttention",
    "SolverError",
    "SpatialFrequencyFusion",
    "SpatialMambaBlock",
    "WaveletMambaBlock",
    "WavemambaError",
    "__version__",
    "create_model",
    "frequency_transform",
    "list_models",
    "ops",
    "register_model",
    "register_scan_order",
    "register_transform",
    "scan_order",
]

register_in_timm()
