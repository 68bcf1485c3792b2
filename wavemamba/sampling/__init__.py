"""Pictures from a saved or a live diffusion model."""

from wavemamba.sampling.grids import image_grid, to_uint8
from wavemamba.sampling.pictures import Pictures
from wavemamba.sampling.sampler import Sampler
from wavemamba.sampling.settings import Settings

__all__ = [
    "Pictures",
    "Sampler",
    "Settings",
    "image_grid",
    "to_uint8",
]
