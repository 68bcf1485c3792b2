"""The DiMSUM family."""

from wavemamba.models.dimsum.config import BlockSpec, DiMSUMConfig, layer_plan
from wavemamba.models.dimsum.model import DiMSUM

__all__ = ["BlockSpec", "DiMSUM", "DiMSUMConfig", "layer_plan"]
