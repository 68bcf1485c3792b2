"""The released weights of DiMSUM; those of DiT, SiT and ZigMa are read by `models.dit` and `models.zigma`."""

from wavemamba.models.dimsum.released import from_released, load_released

__all__ = ["from_released", "load_released"]
