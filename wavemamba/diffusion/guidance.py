"""Classifier-free guidance as a wrapper around a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wavemamba.checks import expect_count, expect_number
from wavemamba.diffusion.calls import Conditions, Model, expect_conditions, find_attribute
from wavemamba.diffusion.paths import broadcast_time
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.names import choose

GuidanceSchedule = Callable[[Tensor, float, float], Tensor]
"""`(t, scale, power) -> s(t)`."""

GUIDANCE_SCHEDULES: dict[str, GuidanceSchedule] = {
    "constant": lambda t, scale, power: torch.full_like(t, scale),
    "power_cosine": lambda t, scale, power: 1 + (scale - 1) * 0.5 * (1 - torch.cos(math.pi * (1 - t) ** power)),
}


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
        model: called as `model(x, t, y=labels)`, with further conditions by their names.
        scale: guidance scale, >= 0; 1 is no guidance, 0 unconditional.
        interval: times in which guidance acts, both ends included, 0 noise, 1 data.
        schedule: `"constant"`, `"power_cosine"`, or a function `(t, scale, power) -> s(t)`.
        power: of the power-cosine schedule, > 0.
        null_class: label that stands for none; None: the model's own, found through `functools.partial` and modules
            that wrap it, but not inside a function.

    Raises:
        ConfigError: an unconditional model (no null class), an unknown schedule or a bad number.
    """

    def __init__(
        self,
        model: Model,
        scale: float,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
        schedule: GuidanceSchedule | str = "constant",
        power: float = 4.0,
        null_class: int | None = None,
    ) -> None:
        self.model = model
        self.schedule = (
            GUIDANCE_SCHEDULES[choose("schedule", schedule, GUIDANCE_SCHEDULES)]
            if isinstance(schedule, str)
            else schedule
        )
        if not callable(self.schedule):
            raise ConfigError(f"schedule: expected a name or a function (t, scale, power), got {schedule!r}")
        self.scale = expect_number("scale", scale, least=0, remedy="1 is no guidance")
        self.power = expect_number("power", power, above=0, remedy="4 is usual")
        if not isinstance(interval, Sequence) or len(interval) != 2:
            raise ConfigError(f"interval: expected (start, end), got {interval!r}; 0 is noise, 1 is data")
        for time in interval:
            expect_number("interval", time, least=0, most=1, remedy="expected 0 <= start <= end <= 1")
        if interval[0] > interval[1]:
            raise ConfigError(f"interval: expected 0 <= start <= end <= 1, got {interval}; 0 is noise, 1 is data")
        self.interval = (float(interval[0]), float(interval[1]))
        # A module without the attribute may raise, another may hold None: both are unconditional.
        found = find_attribute(model, "null_class") if null_class is None else null_class
        if found is None:
            raise ConfigError(
                f"ClassifierFreeGuidance: expected a class-conditional model with a null class, got "
                f"{type(model).__name__} without `null_class`; unconditional models are sampled without guidance, and "
                "the null class of a model inside a function is passed as null_class="
            )
        self.null_class = expect_count("null_class", found)

    def scale_at(self, t: Tensor) -> Tensor:
        """`s(t)` for times of any shape."""
        start, end = self.interval
        return torch.where((t >= start) & (t <= end), self.schedule(t, self.scale, self.power), torch.ones_like(t))

    def __call__(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, *, conditions: Conditions | None = None, **named: Any
    ) -> Tensor:
        """The guided prediction.

        Args:
            x: (B, C, ...).
            t: (B,), times.
            y: (B,) int64, labels; not the null class.
            conditions: further conditions of the model; tensors with a first axis of B are repeated for the
                unconditional half.
            **named: the same by their names, as the model itself takes them.

        Returns:
            The shape of the model's output for `x`.

        Raises:
            ConfigError: no labels.
            ShapeError: not one label per sample.
        """
        batch = len(x)
        if y is None:
            raise ConfigError("y: expected (B,) labels, got None; without labels there is nothing to guide towards")
        if not isinstance(y, Tensor):
            raise ShapeError(f"y: expected a tensor of labels, got {type(y).__name__}; make one with torch.as_tensor")
        if y.shape != (batch,):
            raise ShapeError(f"y: expected ({batch},), one label per sample, got {tuple(y.shape)}")
        given = {**(conditions or {}), **named}
        expect_conditions(self.model, y, given)
        labels = torch.cat([y, torch.full_like(y, self.null_class)])
        extra = {name: _doubled(value, batch) for name, value in given.items()}
        output = self.model(_twice(x), _twice(t), y=labels, **extra)
        if not isinstance(output, Tensor):
            raise ShapeError(
                f"model output: expected a tensor, got {type(output).__name__}; return the prediction alone"
            )
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
