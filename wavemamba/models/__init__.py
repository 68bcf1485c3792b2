"""Complete models, built from the public blocks; a folder a family.

The class and the configuration of every family are here too, `DiT` and `DiTConfig` for example; those of another family
than DiMSUM are imported at their first use.
"""

from typing import TYPE_CHECKING, Any

from wavemamba.models import checkpoints
from wavemamba.models.base import DiffusionModel, Model
from wavemamba.models.config import DiffusionConfig, ModelConfig, PatchConfig
from wavemamba.models.description import Condition, TrainedFor
from wavemamba.models.dimsum.config import DiMSUMConfig
from wavemamba.models.dimsum.model import DiMSUM
from wavemamba.models.dimsum.parts import make_block
from wavemamba.models.dimsum.plan import BlockSpec, layer_plan
from wavemamba.models.part_registry import register_part
from wavemamba.models.patch_model import PatchDiffusionModel
from wavemamba.models.registry import create_model, library_families, list_models, register_model
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
    "checkpoints",
    "create_model",
    "layer_plan",
    "list_models",
    "load_pretrained",
    "make_block",
    "register_model",
    "register_part",
]

if TYPE_CHECKING:
    from wavemamba.models.diffussm import DiffuSSM as DiffuSSM
    from wavemamba.models.diffussm import DiffuSSMConfig as DiffuSSMConfig
    from wavemamba.models.dit import DiT as DiT
    from wavemamba.models.dit import DiTConfig as DiTConfig
    from wavemamba.models.zigma import ZigMa as ZigMa
    from wavemamba.models.zigma import ZigMaConfig as ZigMaConfig
else:

    def __getattr__(name: str) -> Any:
        """A class or a configuration of a family that is not imported yet."""
        if name[:1].isupper():
            for family in library_families().values():
                model = family.load()
                for thing in (model, model.config_class):
                    if thing.__name__ == name:
                        return thing
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
