"""The solvers of torchdiffeq and SciPy, each behind the interface of `OdeSolver`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavemamba.diffusion.solvers.base import REMEDY, OdeSolver, Problem, Solution, expect_finite
from wavemamba.errors import ConfigError, SolverError
from wavemamba.names import check_names, choose

ADAPTIVE_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
"""Every adaptive method of torchdiffeq."""

_ADAPTIVE_OPTIONS = (
    *("first_step", "step_t", "jump_t", "safety", "ifactor", "dfactor", "max_num_steps", "min_step", "max_step"),
    *("dtype", "norm"),
)
_GRID_OPTIONS = ("step_size", "grid_constructor", "interp", "perturb", "max_order", "max_iters")
_SCIPY_METHODS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
_SCIPY_OPTIONS = ("solver", "max_step", "first_step", "min_step", "lband", "uband")


class _Traced:
    """The right-hand side as torchdiffeq wants it: a scalar time, and its hooks as attributes."""

    def __init__(self, problem: Problem, total: int | None) -> None:
        self._problem, self._total = problem, total
        self.steps = self.rejected = 0
        if total is not None:
            self.callback_step = self._begin
        else:
            self.callback_accept_step = self._begin
            self.callback_reject_step = self._reject

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self._problem.slope(t, x)

    def _begin(self, t: Tensor, x: Tensor, h: Tensor) -> None:
        # torchdiffeq shows where a step begins: the end of the one before it.
        if self._problem.callback is not None and self.steps > 0:
            self._problem.report(self.steps, self._total, float(t), x)
        self.steps += 1

    def _reject(self, t: Tensor, x: Tensor, h: Tensor) -> None:
        self.rejected += 1


def _odeint(name: str, problem: Problem, options: dict[str, Any], total: int | None) -> Solution:
    with torch.device("cpu"):  # it makes tables while it is imported
        from torchdiffeq import odeint

    traced, x = _Traced(problem, total), problem.x
    ends = torch.tensor([problem.start, problem.end], dtype=x.dtype, device=x.device)
    try:
        with warnings.catch_warnings():
            # torchdiffeq hands every solver a norm and then warns that some do not use it.
            warnings.filterwarnings("ignore", message=".*Unexpected arguments.*norm")
            states = odeint(traced, x, ends, method=name, atol=problem.atol, rtol=problem.rtol, options=options)
    except (TypeError, ValueError) as error:
        raise _bad_options(name, error, problem) from error
    except AssertionError as error:
        if error is problem.slope.failure:
            raise
        raise SolverError(
            f"{name}: cannot go on ({error}); the model's output may not be finite, or the tolerances are below the "
            f"precision of the state: {REMEDY}"
        ) from error
    problem.report(traced.steps, traced.steps, problem.end, states[-1])
    return Solution(states[-1], traced.steps, traced.rejected)


class AdaptiveSolver(OdeSolver):
    """One of torchdiffeq's adaptive methods: the samples of a batch share their steps."""

    adaptive, overshoots = True, True
    controls = ("batch",)

    def __init__(self, name: str) -> None:
        self.name = name

    def integrate(self, problem: Problem) -> Solution:
        """By torchdiffeq; the last step ends at the end, unless overshooting was asked for."""
        check_names(problem.options, _ADAPTIVE_OPTIONS, f"option of {self.name}")
        options: dict[str, Any] = {}
        if not problem.overshoot:
            options["step_t"] = torch.tensor([problem.end], dtype=problem.x.dtype, device=problem.x.device)
        if (norm := problem.norm) is not None:
            options["norm"] = lambda error: norm(error).square().mean().sqrt()
        return _odeint(self.name, problem, {**options, **problem.options}, None)


class MultistepSolver(OdeSolver):
    """One of torchdiffeq's Adams methods, with equal steps.

    Args:
        name: torchdiffeq's.
        explicit: without a corrector, whose end depends on the whole batch.
    """

    def __init__(self, name: str, explicit: bool) -> None:
        self.name, self.explicit = name, explicit
        self.controls = ("batch", "sample") if explicit else ("batch",)

    def integrate(self, problem: Problem) -> Solution:
        """By torchdiffeq."""
        check_names(problem.options, _GRID_OPTIONS, f"option of {self.name}")
        # A grid of its own: given as output times, every state on it would be kept.
        grid = torch.tensor(problem.times, dtype=problem.x.dtype, device=problem.x.device)
        options: dict[str, Any] = {"grid_constructor": lambda func, y0, t: grid}
        if self.explicit:
            # torchdiffeq climbs to order 12, whose region of stability is too small for any usual number of steps.
            options["max_order"] = 5
        return _odeint(self.name, problem, {**options, **problem.options}, problem.steps)


class ScipySolver(OdeSolver):
    """`scipy.integrate.solve_ivp` on the CPU, in float64; `options={"solver": "LSODA"}` chooses its method."""

    name, adaptive, controls = "scipy_solver", True, ("batch",)

    def integrate(self, problem: Problem) -> Solution:
        """By SciPy."""
        from scipy.integrate import solve_ivp  # type: ignore[import-untyped, unused-ignore]  # ships no types

        check_names(problem.options, _SCIPY_OPTIONS, f"option of {self.name}")
        options = dict(problem.options)
        method = choose("solver of scipy_solver", options.pop("solver", "LSODA"), _SCIPY_METHODS)
        x = problem.x

        def slope(t: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
            found = problem.slope(float(t), torch.from_numpy(state.reshape(x.shape).copy()).to(x))
            expect_finite(self.name, found, f"the field at time {t:.4g}")
            return _flat(found)

        interval, tolerances = (problem.start, problem.end), {"rtol": problem.rtol, "atol": problem.atol}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*rtol.*too")  # it then takes the smallest that makes sense
            try:
                result = solve_ivp(slope, interval, _flat(x), method=method, **tolerances, **options)
            except (TypeError, ValueError) as error:
                raise _bad_options(self.name, error, problem) from error
        if not result.success:
            raise SolverError(f"{self.name}: cannot go on ({result.message}); {REMEDY}")
        end = torch.from_numpy(result.y[:, -1].reshape(x.shape).copy()).to(x)
        problem.report(1, None, problem.end, end)
        return Solution(end, None)


def _bad_options(name: str, error: Exception, problem: Problem) -> Exception:
    """The error that says that options were refused, unless it is the field's own."""
    if error is problem.slope.failure or not problem.options:
        return error
    return ConfigError(f"options: expected values that {name} takes, got {problem.options!r} ({error})")


def _flat(x: Tensor) -> NDArray[np.float64]:
    return x.detach().to("cpu", torch.float64).numpy().ravel().copy()
