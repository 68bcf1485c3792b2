"""Classifier-free guidance as a wrapper around a model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wavemamba.diffusion.objective import Model
from wavemamba.diffusion.paths import broadcast_time
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.names import choose

SCHEDULES = ("constant", "power_cosine")


class ClassifierFreeGuidance:
    """A model whose prediction is pushed from the unconditional towards the conditional one.

    `out = u + s(t) (c - u)` with the conditional prediction `c` and the unconditional `u`, from one call on a batch of
    twice the size. All channels of the prediction are guided; where the model also learns a variance, that half is the
    conditional one. The scale is

        constant:      s(t) = scale
        power_cosine:  s(t) = 1 + (scale - 1) (1 - cos(pi (1 - t)^power)) / 2

    inside the interval and 1, plain conditional, outside of it. Power-cosine starts at `scale` in the noise and falls
    to 1 at the data.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022; Gao et al., MDT, ICCV 2023 (power-cosine);
    Kynkäänniemi et al., "Applying Guidance in a Limited Interval", NeurIPS 2024.

    Args:
        model: called as `model(x, t, y=labels, **kwargs)`.
        scale: guidance scale, >= 0; 1 is no guidance, 0 unconditional.
        interval: times in which guidance acts, both ends included, 0 noise, 1 data.
        schedule: `"constant"` or `"power_cosine"`.
        power: of the power-cosine schedule, > 0.
        null_class: label that stands for none; None: `model.null_class`.

    Raises:
        ConfigError: an unconditional model (no null class), an unknown schedule or a bad number.
    """

    def __init__(
        self,
        model: Model,
        scale: float,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
        schedule: str = "constant",
        power: float = 4.0,
        null_class: int | None = None,
    ) -> None:
        self.model = model
        self.schedule = choose("schedule", schedule, SCHEDULES)
        if not (math.isfinite(scale) and scale >= 0):
            raise ConfigError(f"scale: expected a finite number >= 0, got {scale}; 1 is no guidance")
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise ConfigError(f"interval: expected 0 <= start <= end <= 1, got {interval}; 0 is noise, 1 is data")
        if not power > 0:
            raise ConfigError(f"power: expected > 0, got {power}; 4 is usual")
        # A module whose attribute is missing raises, a wrapper may hold None: both are unconditional.
        found = getattr(model, "null_class", None) if null_class is None else null_class
        if found is None:
            raise ConfigError(
                f"ClassifierFreeGuidance: expected a class-conditional model with a null class, got "
                f"{type(model).__name__} without `null_class`; unconditional models are sampled without guidance, and "
                "a wrapped model's null class is passed as null_class="
            )
        self.scale, self.interval, self.power, self.null_class = float(scale), interval, float(power), int(found)
        self.time_range: tuple[float, float] | None = getattr(model, "time_range", None)

    def scale_at(self, t: Tensor) -> Tensor:
        """`s(t)` for times of any shape."""
        if self.schedule == "constant":
            scale = torch.full_like(t, self.scale)
        else:
            scale = 1 + (self.scale - 1) * 0.5 * (1 - torch.cos(math.pi * (1 - t) ** self.power))
        start, end = self.interval
        return torch.where((t >= start) & (t <= end), scale, torch.ones_like(t))

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The guided prediction.

        Args:
            x: (B, C, ...).
            t: (B,), times.
            y: (B,) int64, labels; not the null class.
            **kwargs: passed on; tensors with a first axis of B are repeated for the unconditional half.

        Returns:
            The shape of the model's output for `x`.

        Raises:
            ConfigError: no labels.
            ShapeError: not one label per sample.
        """
        batch = len(x)
        if y is None:
            raise ConfigError("y: expected (B,) labels, got None; without labels there is nothing to guide towards")
        if y.shape != (batch,):
            raise ShapeError(f"y: expected ({batch},), one label per sample, got {tuple(y.shape)}")
        labels = torch.cat([y, torch.full_like(y, self.null_class)])
        output = self.model(_twice(x), _twice(t), y=labels, **{k: _doubled(v, batch) for k, v in kwargs.items()})
        conditional, unconditional = output.chunk(2)
        channels = x.shape[1]
        scale = broadcast_time(self.scale_at(t), x).to(output.dtype)
        c, u = conditional[:, :channels], unconditional[:, :channels]
        guided = u + scale * (c - u)
        if conditional.shape[1] == channels:
            return guided
        return torch.cat([guided, conditional[:, channels:]], dim=1)


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])


def _doubled(value: Any, batch: int) -> Any:
    per_sample = isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch
    return _twice(value) if per_sample else value
