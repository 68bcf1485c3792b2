"""Training times and the margins that keep solvers away from singular end points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from wavemamba.checks import expect_count, expect_number
from wavemamba.diffusion.paths import Path
from wavemamba.errors import ConfigError
from wavemamba.names import check_names
from wavemamba.registry import Registry


class TimeInterval(NamedTuple):
    """Where times are drawn or integrated: `0 <= start < end <= 1`."""

    start: float
    end: float


class Margins(NamedTuple):
    """Distance kept from a singular end point: in training, and when sampling."""

    train: float
    sample: float


def default_margins(path: Path, converted: bool) -> Margins:
    """Margins of the released SiT and DiMSUM code.

    0 for a velocity on a path without singular velocity (linear, GVP); 1e-5 in training and 1e-3 in sampling for VP;
    1e-3 for score and noise predictions on linear and GVP.
    """
    if path.singular_end:
        return Margins(1e-5, 1e-3)
    return Margins(1e-3, 1e-3) if converted else Margins(0.0, 0.0)


def flow_interval(path: Path, converted: bool, margin: float) -> TimeInterval:
    """Times at which a loss or a probability flow is finite.

    Args:
        path: the interpolation path.
        converted: the velocity is made from what the network predicts, `Prediction.converted`.
        margin: distance to keep from an end point where something is singular.

    Returns:
        `[margin, 1 - margin]` for converted predictions; for velocities `[0, 1]`, or `[0, 1 - margin]` on VP.
        VP starts at 0 whatever is predicted: its `alpha(0)` is not 0.
    """
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
    """How training times are distributed over an interval; a user's own draws in [0, 1] by `unit`."""

    name: str

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
        same times on every device. `device` None is the generator's, else the CPU.
        """
        where = generator.device if generator is not None else torch.device(device or "cpu")
        unit = self.unit(expect_count("count", count), generator=generator, device=where, dtype=dtype)
        return (interval.start + (interval.end - interval.start) * unit).to(device or where)

    @abstractmethod
    def unit(
        self, count: int, *, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Draws in [0, 1], (count,)."""


@dataclass(frozen=True)
class UniformTime(TimeSampling):
    """`t ~ U[start, end]`."""

    name = "uniform"

    def unit(
        self, count: int, *, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Uniform draws."""
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

    name = "logit_normal"

    def __post_init__(self) -> None:
        expect_number("mean", self.mean)
        expect_number("std", self.std, above=0, remedy="the usual value is 1")

    def unit(
        self, count: int, *, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Draws through the sigmoid."""
        normal = torch.randn(count, generator=generator, device=device, dtype=dtype)
        return torch.sigmoid(self.mean + self.std * normal)


TIME_SAMPLINGS: Registry[type[TimeSampling]] = Registry(
    "time sampling", "register_time_sampling adds a class of your own"
)

TimeSamplingType = TypeVar("TimeSamplingType", bound=type[TimeSampling])


def register_time_sampling(kind: TimeSamplingType) -> TimeSamplingType:
    """Let a class of time samplings be chosen by its `name`; returns it, and so serves as a decorator.

    Raises:
        ConfigError: the name stands for another time sampling already.
    """
    TIME_SAMPLINGS.add(kind.name, kind)
    return kind


for _kind in (UniformTime, LogitNormalTime):
    register_time_sampling(_kind)


def get_time_sampling(name: str, **options: float) -> TimeSampling:
    """Build a time sampling by name: `"uniform"`, `"logit_normal"` (`mean`, `std`) or one that was registered.

    Raises:
        ConfigError: no such time sampling, or an option that it does not have.
    """
    kind = TIME_SAMPLINGS.find(name)
    check_names(options, list(getattr(kind, "__dataclass_fields__", {})), f"option of time sampling {kind.name!r}")
    return kind(**options)
