"""Loss scaling for float16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LossScale:
    """A power of two that the loss is multiplied with, so that float16 gradients do not vanish.

    A step whose gradient is not finite is skipped and halves the scale; `growth_interval` good steps in a row double
    it: the rule of `torch.amp.GradScaler`. The verdict is the norm of the whole gradient, which all processes of a run
    share, sharded or not; hence all skip the same steps.

    Args:
        enabled: without it the scale is 1 and no step is skipped.
        initial: first scale.
        growth_interval: good steps before it is doubled.
    """

    LEAST = 2.0**-10

    def __init__(self, *, enabled: bool, initial: float = 2.0**16, growth_interval: int = 2000) -> None:
        self.enabled = enabled
        self.value = initial if enabled else 1.0
        self.growth_interval = growth_interval
        self.good_steps = 0
        self.skipped = 0

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide the gradients by the scale."""
        if self.enabled:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if gradients:
                torch._foreach_mul_(gradients, 1.0 / self.value)

    def accepts(self, norm: Tensor) -> bool:
        """Whether to take the step of a gradient of this norm; adapts the scale."""
        if not self.enabled:
            return True
        if not bool(norm.isfinite()):
            self.value, self.good_steps, self.skipped = self.value / 2, 0, self.skipped + 1
            return False
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.value, self.good_steps = self.value * 2, 0
        return True

    @property
    def exhausted(self) -> bool:
        """Whether the scale has fallen so low that the loss itself must be at fault."""
        return self.value < self.LEAST

    def state_dict(self) -> dict[str, Any]:
        """The scale and its counters."""
        return {"value": self.value, "good_steps": self.good_steps, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; a run without scaling keeps none."""
        if self.enabled:
            self.value, self.good_steps = float(state["value"]), int(state["good_steps"])
            self.skipped = int(state["skipped"])
