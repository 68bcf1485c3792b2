"""Training times and the margins that keep solvers away from singular end points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wavemamba.diffusion.paths import Path
from wavemamba.errors import ConfigError
from wavemamba.names import choose


class TimeInterval(NamedTuple):
    """Where times are drawn or integrated: `0 <= start < end <= 1`."""

    start: float
    end: float


class Margins(NamedTuple):
    """Distance kept from a singular end point: in training, and when sampling."""

    train: float
    sample: float


def default_margins(path: Path, prediction: str) -> Margins:
    """Margins of the released SiT and DiMSUM code.

    0 for a velocity on a path without singular velocity (linear, GVP); 1e-5 in training and 1e-3 in sampling for VP;
    1e-3 for score and noise predictions on linear and GVP.
    """
    if path.singular_end:
        return Margins(1e-5, 1e-3)
    return Margins(0.0, 0.0) if prediction == "velocity" else Margins(1e-3, 1e-3)


def flow_interval(path: Path, prediction: str, margin: float) -> TimeInterval:
    """Times at which a loss or a probability flow is finite.

    Args:
        path: the interpolation path.
        prediction: what the network predicts.
        margin: distance to keep from an end point where something is singular.

    Returns:
        `[margin, 1 - margin]` for score and noise predictions; for velocities `[0, 1]`, or `[0, 1 - margin]` on VP.
        VP starts at 0 whatever is predicted: its `alpha(0)` is not 0.
    """
    converted = prediction != "velocity"
    start = margin if converted and path.singular_start else 0.0
    end = 1.0 - margin if converted or path.singular_end else 1.0
    return checked_interval(start, end)


def checked_interval(start: float, end: float) -> TimeInterval:
    """Return the interval.

    Raises:
        ConfigError: not `0 <= start < end <= 1`.
    """
    if not 0 <= start < end <= 1:
        raise ConfigError(f"times: expected 0 <= start < end <= 1, got [{start}, {end}]; choose smaller margins")
    return TimeInterval(start, end)


class TimeSampling(ABC):
    """How training times are distributed over an interval."""

    def sample(
        self,
        count: int,
        interval: TimeInterval = TimeInterval(0.0, 1.0),  # noqa: B008  (an immutable tuple)
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw `count` times: `start + (end - start) * unit`, (count,).

        A generator on another device than `device` is drawn from where it lives, so that a CPU generator gives the
        same times on every device.
        """
        where = generator.device if generator is not None else device
        unit = self._unit(count, generator, where, dtype)
        return (interval.start + (interval.end - interval.start) * unit).to(device)

    @abstractmethod
    def _unit(
        self, count: int, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor:
        """Draws in [0, 1], (count,)."""


@dataclass(frozen=True)
class UniformTime(TimeSampling):
    """`t ~ U[start, end]`."""

    def _unit(
        self, count: int, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor:
        return torch.rand(count, generator=generator, device=device, dtype=dtype)


@dataclass(frozen=True)
class LogitNormalTime(TimeSampling):
    """`t = sigmoid(mean + std * n)` with `n ~ N(0, 1)`, scaled into the interval.

    Source: Esser et al., "Scaling Rectified Flow Transformers", 2024, eq. 19; the default mean is the released DiMSUM
    code's.

    Args:
        mean: location before the sigmoid; negative values train more on the noise side.
        std: spread before the sigmoid, > 0.
    """

    mean: float = -0.5
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ConfigError(f"LogitNormalTime: expected std > 0, got {self.std}; the usual value is 1")

    def _unit(
        self, count: int, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor:
        normal = torch.randn(count, generator=generator, device=device, dtype=dtype)
        return torch.sigmoid(self.mean + self.std * normal)


TIME_SAMPLINGS: dict[str, type[TimeSampling]] = {"uniform": UniformTime, "logit_normal": LogitNormalTime}


def get_time_sampling(name: str) -> TimeSampling:
    """Build a time sampling by name, `"uniform"` or `"logit_normal"`, with its default options.

    Raises:
        ConfigError: no such time sampling.
    """
    return TIME_SAMPLINGS[choose("time sampling", name, TIME_SAMPLINGS)]()
