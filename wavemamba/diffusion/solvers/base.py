"""What an ODE solver is: the problem it gets, and how its evaluations are counted, bounded and kept apart."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wavemamba.diffusion.report import OnStep, Progress
from wavemamba.errors import ConfigError, ShapeError, SolverError

Dynamics = Callable[[Tensor, Tensor], Tensor]
"""`(t: (B,), x: (B, ...)) -> (B, ...)`."""

REMEDY = "raise atol and rtol, use float64, or take a fixed-step solver such as 'heun'"


class Evaluations:
    """A right-hand side that counts its calls, ends them at a bound, and gives each its own input and output.

    Args:
        dynamics: the right-hand side.
        within: the times that it may be asked for; others are moved to the nearest of them. None: any.
        most: calls that are allowed; None: any number.
        solver: for errors.
    """

    def __init__(self, dynamics: Dynamics, within: tuple[float, float] | None, most: int | None, solver: str) -> None:
        self._dynamics, self._within, self._most, self._solver = dynamics, within, most, solver
        self.count = 0
        self.failure: BaseException | None = None
        """What the right-hand side, or the caller's callback, raised: it is passed on as it is."""

    def __call__(self, t: Tensor | float, x: Tensor) -> Tensor:
        """The slope at `x`: (B, ...), for one time or one a sample."""
        try:
            if self._most is not None and self.count >= self._most:
                raise SolverError(
                    f"{self._solver}: expected to arrive within max_evaluations={self._most}, got less far; "
                    f"{REMEDY}, or raise max_evaluations"
                )
            self.count += 1
            if isinstance(t, Tensor):
                times = t.to(x.dtype).expand(len(x))
                times = times.clone() if self._within is None else times.clamp(*self._within)
            else:
                time = t if self._within is None else min(max(t, self._within[0]), self._within[1])
                times = torch.full((len(x),), time, device=x.device, dtype=x.dtype)
            slope = self._dynamics(times, x.clone())
            if not isinstance(slope, Tensor) or slope.shape != x.shape:
                got = tuple(slope.shape) if isinstance(slope, Tensor) else type(slope).__name__
                raise ShapeError(f"field: expected a tensor of the shape of x {tuple(x.shape)}, got {got}")
            # A compiled model may hand out the same memory at every call.
            return slope.to(x.dtype, copy=True)
        except BaseException as error:
            self.failure = error
            raise


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a solver integrates: `dx/dt = slope(t, x)` from `x` at `start` to `end`; see `integrate` for the rest."""

    slope: Evaluations
    x: Tensor
    start: float
    end: float
    steps: int
    atol: float
    rtol: float
    step_control: str
    overshoot: bool
    norm: Callable[[Tensor], Tensor] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    callback: OnStep | None = None

    @property
    def times(self) -> list[float]:
        """`steps + 1` equally spaced times, both ends included exactly."""
        return time_grid(self.start, self.end, self.steps)

    def report(self, step: int, total: int | None, time: float, x: Tensor) -> None:
        """Tell the callback, where there is one."""
        if self.callback is None:
            return
        try:
            self.callback(Progress(step, total, time, x))
        except BaseException as error:
            self.slope.failure = error
            raise


class Solution(NamedTuple):
    """Where a solver arrived."""

    x: Tensor
    """(B, ...), the state at the end."""
    steps: int | None
    """Steps taken; None where the solver does not tell."""
    rejected: int = 0
    """Steps that error control refused."""


class OdeSolver(ABC):
    """Integrates a `Problem`. A user's own: derive, set `name`, and pass an object wherever a name is taken."""

    name: str
    adaptive: bool = False
    """It chooses its own steps, and so is held to a number of evaluations."""
    controls: tuple[str, ...] = ("batch", "sample")
    """What `step_control` may be; with "sample" a sample does not depend on its neighbours."""
    overshoots: bool = False
    """It can pass the end and interpolate back."""

    @abstractmethod
    def integrate(self, problem: Problem) -> Solution:
        """Carry `problem.x` from `problem.start` to `problem.end`; `problem.x` is not written to."""


Step = Callable[[Callable[[float, Tensor], Tensor], Tensor, float, float], Tensor]
"""`(slope(t, x), x, now, after) -> x at after`."""


class FixedStepSolver(OdeSolver):
    """Equal steps by one function.

    Args:
        name: what it is called.
        step: `(slope, x, now, after) -> x at after`, where `slope(t, x)` takes one time for the whole batch.
    """

    def __init__(self, name: str, step: Step) -> None:
        self.name, self.step = name, step

    def integrate(self, problem: Problem) -> Solution:
        """`problem.steps` steps, without waiting for the device."""
        refuse_options(self.name, problem.options)
        x = problem.x
        for done, (now, after) in enumerate(itertools.pairwise(problem.times), start=1):
            x = self.step(problem.slope, x, now, after)
            problem.report(done, problem.steps, after, x)
        return Solution(x, problem.steps)


def time_grid(start: float, end: float, steps: int) -> list[float]:
    """`steps + 1` equally spaced times, both ends included exactly."""
    return [start + (end - start) * i / steps for i in range(steps)] + [end]


def refuse_options(name: str, options: dict[str, Any]) -> None:
    """Raise `ConfigError` where options were given to a solver that has none."""
    if options:
        raise ConfigError(f"options: solver {name!r} takes none here, got {sorted(options)}; leave them out")


def expect_finite(name: str, x: Tensor, meaning: str) -> None:
    """Raise `SolverError` unless every number is finite; waits for the device once."""
    if not x.is_meta and not bool(x.isfinite().all()):
        raise SolverError(f"{name}: expected finite numbers, got NaN or infinite ones in {meaning}")
