"""How fast a run learns."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from wavemamba.names import choose

LR_SCHEDULES = ("constant", "cosine")


def learning_rate_factor(schedule: str, *, warmup: int, steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied with, as a function of the steps done.

    Linear from `1 / warmup` to 1 over the first `warmup` steps; then 1, or `(1 + cos(pi p)) / 2` with `p` running from
    0 to 1 over the steps that are left.

    Args:
        schedule: "constant" or "cosine".
        warmup: steps, >= 0.
        steps: length of the run, >= 1.

    Raises:
        ConfigError: an unknown schedule.
    """
    schedule = choose("schedule", schedule, LR_SCHEDULES)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


class LearningRates:
    """Sets an optimiser's learning rates as a function of the step; nothing of it has to be saved.

    Args:
        optimizer: its groups' rates are those that the factor is applied to.
        factor: of the steps done.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> None:
        self.optimizer = optimizer
        self.factor = factor
        self.rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.set(0)

    def set(self, step: int) -> None:
        """Set the rates of the step that comes after `step` steps."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor(step)

    @property
    def current(self) -> float:
        """The first group's rate."""
        return float(self.optimizer.param_groups[0]["lr"])
