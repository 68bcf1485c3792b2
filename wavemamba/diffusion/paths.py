"""Interpolation paths between noise (`t = 0`) and data (`t = 1`).

A path is `x_t = alpha(t) x1 + sigma(t) x0` with noise `x0 ~ N(0, I)` and data `x1`. Everything that converts between
velocity, score and noise follows from the two coefficients and their derivatives:

    velocity  u = alpha' x1 + sigma' x0
    W         = alpha' sigma - alpha sigma'                      (Wronskian, > 0)
    score     s = (alpha u - alpha' x) / (sigma W) = -noise / sigma
    velocity  u = (alpha' / alpha) x + (sigma W / alpha) s

Source: Ma et al., "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers",
ECCV 2024, section 2; Albergo and Vanden-Eijnden, "Stochastic Interpolants", 2023.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from wavemamba.checks import expect_number
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.names import check_names
from wavemamba.registry import Registry


def broadcast_time(t: Tensor, x: Tensor) -> Tensor:
    """Reshape times `(B,)` to `(B, 1, ..., 1)` so that they broadcast over `x: (B, ...)`.

    Raises:
        ShapeError: `t` is not one time per sample.
    """
    if not isinstance(t, Tensor) or t.shape != x.shape[:1]:
        got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
        raise ShapeError(
            f"t: expected ({x.shape[0]},), one time per sample of x {tuple(x.shape)}, got {got}; "
            "expand a single time with t.expand(len(x))"
        )
    return t.view(-1, *[1] * (x.ndim - 1))


class Path(ABC):
    """Coefficients of `x_t = alpha(t) x1 + sigma(t) x0`; every method takes and returns tensors of any shape.

    A user's own path derives from this; the options of its constructor are the fields of a dataclass. It is passed as
    an object wherever a name is taken; `register_path` lets it be found by name, so that a saved model can say it.
    """

    name: str
    singular_start: bool = True
    """`alpha(0) = 0`: velocities made from a score or a noise prediction have no finite value at `t = 0`."""
    singular_end: bool = False
    """`sigma'` is unbounded at `t = 1`, so the velocity itself has no finite value there."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise."""

    @abstractmethod
    def alpha_rate(self, t: Tensor) -> Tensor:
        """`d alpha / dt`."""

    @abstractmethod
    def sigma_rate(self, t: Tensor) -> Tensor:
        """`d sigma / dt`."""

    def wronskian(self, t: Tensor) -> Tensor:
        """`W = alpha' sigma - alpha sigma'`; a closed form keeps more digits."""
        return self.alpha_rate(t) * self.sigma(t) - self.alpha(t) * self.sigma_rate(t)

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """`d log(alpha) / dt = alpha' / alpha`."""
        return self.alpha_rate(t) / self.alpha(t)

    def score_gain(self, t: Tensor) -> Tensor:
        """`sigma W / alpha`: how much of the score the velocity holds; half the squared noise rate of score SDEs."""
        return self.sigma(t) * self.wronskian(t) / self.alpha(t)

    def interpolate(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """A point on the path and the velocity there.

        Args:
            x0: (B, ...), noise.
            x1: (B, ...), data.
            t: (B,), times in [0, 1].

        Returns:
            `xt = alpha x1 + sigma x0` and `ut = alpha' x1 + sigma' x0`, both (B, ...).

        Raises:
            ShapeError: the shapes do not fit.
        """
        if x0.shape != x1.shape:
            raise ShapeError(f"x0: expected the shape of x1 {tuple(x1.shape)}, got {tuple(x0.shape)}")
        time = broadcast_time(t, x1)
        xt = self.alpha(time) * x1 + self.sigma(time) * x0
        ut = self.alpha_rate(time) * x1 + self.sigma_rate(time) * x0
        return xt, ut


@dataclass(frozen=True)
class LinearPath(Path):
    """Straight lines: `alpha = t`, `sigma = 1 - t`, `W = 1` (rectified flow)."""

    name = "linear"
    singular_start = True
    singular_end = False

    def alpha(self, t: Tensor) -> Tensor:
        """`t`."""
        return t

    def sigma(self, t: Tensor) -> Tensor:
        """`1 - t`."""
        return 1 - t

    def alpha_rate(self, t: Tensor) -> Tensor:
        """`1`."""
        return torch.ones_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """`-1`."""
        return -torch.ones_like(t)

    def wronskian(self, t: Tensor) -> Tensor:
        """`1`."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class GVPPath(Path):
    """Generalised variance preserving: `alpha = sin(pi t / 2)`, `sigma = cos(pi t / 2)`, `W = pi / 2`."""

    name = "gvp"
    singular_start = True
    singular_end = False

    def alpha(self, t: Tensor) -> Tensor:
        """`sin(pi t / 2)`."""
        return torch.sin(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        """`cos(pi t / 2)`."""
        return torch.cos(t * (math.pi / 2))

    def alpha_rate(self, t: Tensor) -> Tensor:
        """`(pi / 2) cos(pi t / 2)`."""
        return math.pi / 2 * self.sigma(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """`-(pi / 2) sin(pi t / 2)`."""
        return -math.pi / 2 * self.alpha(t)

    def wronskian(self, t: Tensor) -> Tensor:
        """`pi / 2`."""
        return torch.full_like(t, math.pi / 2)


@dataclass(frozen=True)
class VPPath(Path):
    """Variance preserving diffusion with a linear noise rate, run from noise to data.

    With `r = 1 - t` and `beta(t) = beta_min + r (beta_max - beta_min)`:
    `log alpha = -r^2 (beta_max - beta_min) / 4 - r beta_min / 2`, `sigma = sqrt(1 - alpha^2)`,
    `alpha' = alpha beta / 2`, `sigma' = -alpha^2 beta / (2 sigma)`, `W = alpha' / sigma`.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021, eq. 33.

    Args:
        beta_min: noise rate at the data end, > 0.
        beta_max: noise rate at the noise end, >= beta_min.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    name = "vp"
    singular_start = False
    singular_end = True

    def __post_init__(self) -> None:
        for name in ("beta_min", "beta_max"):
            expect_number(name, getattr(self, name), above=0)
        if not self.beta_min <= self.beta_max:
            raise ConfigError(
                f"VPPath: expected 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}; "
                "the usual rates are 0.1 and 20"
            )

    def _log_alpha(self, t: Tensor) -> Tensor:
        r = 1 - t
        return -0.25 * r**2 * (self.beta_max - self.beta_min) - 0.5 * r * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        """`exp(log alpha)`."""
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """`sqrt(1 - alpha^2)`."""
        # expm1 keeps its digits where alpha is close to one.
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def alpha_rate(self, t: Tensor) -> Tensor:
        """`alpha beta / 2`."""
        return self.alpha(t) * self.log_alpha_rate(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """`-alpha^2 beta / (2 sigma)`."""
        return -(self.alpha(t) ** 2) * self.log_alpha_rate(t) / self.sigma(t)

    def wronskian(self, t: Tensor) -> Tensor:
        """`alpha' / sigma`, because `alpha^2 + sigma^2 = 1`."""
        return self.alpha_rate(t) / self.sigma(t)

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """`beta / 2`."""
        return 0.5 * (self.beta_min + (1 - t) * (self.beta_max - self.beta_min))

    def score_gain(self, t: Tensor) -> Tensor:
        """`beta / 2`."""
        return self.log_alpha_rate(t)


PATHS: Registry[type[Path]] = Registry("path", "register_path adds a class of your own")
PathType = TypeVar("PathType", bound=type[Path])


def register_path(kind: PathType) -> PathType:
    """Let a class of paths be chosen by its `name`; returns it, and so serves as a decorator.

    Raises:
        ConfigError: the name stands for another path already.
    """
    PATHS.add(kind.name, kind)
    return kind


for _kind in (LinearPath, GVPPath, VPPath):
    register_path(_kind)


def get_path(name: str, **options: float) -> Path:
    """Build a path by name.

    Args:
        name: `"linear"`, `"gvp"`, `"vp"` or one that was registered.
        **options: the path's own options; of the three only `"vp"` has any (`beta_min`, `beta_max`).

    Raises:
        ConfigError: no such path, or an option that it does not have.
    """
    kind = PATHS.find(name)
    check_names(options, list(getattr(kind, "__dataclass_fields__", {})), f"option of path {kind.name!r}")
    return kind(**options)
