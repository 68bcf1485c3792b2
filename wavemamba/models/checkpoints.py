"""The released weights of the families, under one name."""

from wavemamba.models.dimsum.released import from_released, load_released

__all__ = ["from_released", "load_released"]
