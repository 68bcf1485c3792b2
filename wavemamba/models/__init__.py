"""Complete models, built from the public blocks; a folder a family."""

from wavemamba.models.base import DiffusionModel, Model
from wavemamba.models.config import DiffusionConfig, ModelConfig, PatchConfig
from wavemamba.models.description import Condition, TrainedFor
from wavemamba.models.dimsum.config import DiMSUMConfig
from wavemamba.models.dimsum.model import DiMSUM
from wavemamba.models.dimsum.parts import make_block
from wavemamba.models.dimsum.plan import BlockSpec, layer_plan
from wavemamba.models.part_registry import register_part
from wavemamba.models.patch_model import PatchDiffusionModel
from wavemamba.models.registry import create_model, list_models, register_model
from wavemamba.models.saving import load_pretrained

__all__ = [
    "BlockSpec",
    "Condition",
    "DiMSUM",
    "DiMSUMConfig",
    "DiffusionConfig",
    "DiffusionModel",
    "Model",
    "ModelConfig",
    "PatchConfig",
    "PatchDiffusionModel",
    "TrainedFor",
    "create_model",
    "layer_plan",
    "list_models",
    "load_pretrained",
    "make_block",
    "register_model",
    "register_part",
]
