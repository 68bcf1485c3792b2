"""The ZigMa family: Mamba blocks that walk the image along eight zigzag paths."""

from wavemamba.models.zigma.config import ZigMaConfig
from wavemamba.models.zigma.model import ZigMa
from wavemamba.models.zigma.released import from_released, load_released

__all__ = ["ZigMa", "ZigMaConfig", "from_released", "load_released"]
