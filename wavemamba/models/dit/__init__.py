"""The DiT family: diffusion transformers, and SiT, the same network on flow time."""

from wavemamba.models.dit.config import DiTConfig
from wavemamba.models.dit.model import DiT
from wavemamba.models.dit.released import from_released, load_released

__all__ = ["DiT", "DiTConfig", "from_released", "load_released"]
