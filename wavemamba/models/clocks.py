"""What networks read of the time."""

from __future__ import annotations

from torch import Tensor

_LAST_STEP = 999


def diffusion_step(t: Tensor) -> Tensor:
    """The step 999 (1 - t) of a diffusion of 1,000 steps, for times in [0, 1]: 999 at the noise, 0 at the data."""
    return _LAST_STEP * (1 - t)
