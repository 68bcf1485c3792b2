"""Mamba and wavelets for vision and diffusion networks."""

from typing import TYPE_CHECKING, Any

from wavemamba import models, ops
from wavemamba.blocks import (
    DiMSUMBlock,
    SharedAttention,
    SpatialFrequencyFusion,
    SpatialMambaBlock,
    WaveletMambaBlock,
)
from wavemamba.errors import BackendUnavailable, CheckpointError, ConfigError, ShapeError, SolverError, WavemambaError
from wavemamba.integrations.timm import register_in_timm
from wavemamba.layers import AttentionMixer, GLAMixer, Mamba2Mixer, MambaMixer
from wavemamba.machine import set_up_cpu
from wavemamba.models import DiMSUM, DiMSUMConfig, create_model, list_models, register_model
from wavemamba.sampling import Sampler
from wavemamba.scans import ScanOrder, register_scan_order, scan_order
from wavemamba.transforms import frequency_transform, register_transform
from wavemamba.version import __version__

__all__ = [
    "AttentionMixer",
    "BackendUnavailable",
    "CheckpointError",
    "ConfigError",
    "DiMSUM",
    "DiMSUMBlock",
    "DiMSUMConfig",
    "GLAMixer",
    "Mamba2Mixer",
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
    "models",
    "ops",
    "register_model",
    "register_scan_order",
    "register_transform",
    "scan_order",
    "set_up_cpu",
]

register_in_timm()

if TYPE_CHECKING:
    from wavemamba.data import register_source as register_source
else:

    def __getattr__(name: str) -> Any:
        """`register_source`: sources read pictures with Pillow, which not everybody has."""
        if name == "register_source":
            from wavemamba.data import register_source

            return register_source
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
