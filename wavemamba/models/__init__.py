"""Complete models, built from the public blocks."""

from wavemamba.models.dimsum.config import BlockSpec, DiMSUMConfig, layer_plan
from wavemamba.models.dimsum.model import DiMSUM
from wavemamba.models.registry import create_model, list_models

__all__ = ["BlockSpec", "DiMSUM", "DiMSUMConfig", "create_model", "layer_plan", "list_models"]
