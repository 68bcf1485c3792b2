"""Sampling along stochastic differential equations that share the path's marginals.

    dX = (v(X, t) + w(t) s(X, t)) dt + sqrt(2 w(t)) dW

has the density of `x_t` at every time for any `w(t) >= 0`; `w = 0` is the probability flow. Velocity `v` and score `s`
come from one evaluation of the network.

Source: Ma et al., SiT, ECCV 2024, section 2.3 and table 2. Their equation is written with `w / 2` and `sqrt(w)`; the
scale here is the one that SiT's and DiMSUM's released samplers apply. `norm=0.5` turns "SBDM" into the reverse SDE of
Song et al., 2021.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from wavemamba.checks import expect_count, expect_number
from wavemamba.diffusion.calls import Conditions, Model, expect_conditions, explicit_options, in_evaluation_mode
from wavemamba.diffusion.noise import RandomSource, Streams
from wavemamba.diffusion.objective import Objective, expect_batch, expect_objective
from wavemamba.diffusion.paths import Path, broadcast_time
from wavemamba.diffusion.report import OnStep, Progress, SampleInfo
from wavemamba.diffusion.sample_ode import in_dtype
from wavemamba.diffusion.solvers.base import Evaluations, expect_finite, time_grid
from wavemamba.diffusion.time import TimeInterval, checked_interval
from wavemamba.dtypes import accumulation_dtype
from wavemamba.names import choose
from wavemamba.registry import Registry

DiffusionForm = Callable[[Path, Tensor, float], Tensor]
"""`(path, t, norm) -> w(t)`."""

DIFFUSIONS: dict[str, DiffusionForm] = {
    "none": lambda path, t, norm: torch.zeros_like(t),
    "constant": lambda path, t, norm: torch.full_like(t, norm),
    "SBDM": lambda path, t, norm: 2 * norm * path.score_gain(t),
    "sigma": lambda path, t, norm: norm * path.sigma(t),
    "linear": lambda path, t, norm: norm * (1 - t),
    "decreasing": lambda path, t, norm: 0.25 * (norm * torch.cos(math.pi * t) + 1) ** 2,
    "increasing-decreasing": lambda path, t, norm: norm * torch.sin(math.pi * t) ** 2,
    "log": lambda path, t, norm: norm * torch.log1p(t - t**2),
}
"""`w(t)` by name."""

SdeStep = Callable[[Callable[[Tensor, float], Tensor], Callable[[float], Tensor], Tensor, float, float, Tensor], Tensor]
"""`(drift(x, t), w(t), x, now, after, normal noise) -> x at after`."""

LAST_STEPS = ("none", "mean", "tweedie", "euler")


def get_diffusion(form: DiffusionForm | str) -> DiffusionForm:
    """The function `(path, t, norm) -> w(t)` of a name; a user's own is returned as it is.

    Raises:
        ConfigError: no such form.
    """
    return form if callable(form) else DIFFUSIONS[choose("diffusion", form, DIFFUSIONS)]


def diffusion_coefficient(form: DiffusionForm | str, path: Path, t: Tensor, norm: float = 1.0) -> Tensor:
    """`w(t)` of the sampling SDE.

    Args:
        form: a name in `DIFFUSIONS`, or a function `(path, t, norm) -> w(t)`.
        path: the interpolation path.
        t: times, any shape.
        norm: scale of `w`; "decreasing" has it inside its square.

    Raises:
        ConfigError: no such form.
    """
    return get_diffusion(form)(path, t, norm)


def euler_maruyama_step(
    drift: Callable[[Tensor, float], Tensor],
    diffusion: Callable[[float], Tensor],
    x: Tensor,
    now: float,
    after: float,
    noise: Tensor,
) -> Tensor:
    """`x + h f(x, t) + sqrt(2 w(t) h) n`: weak order 1; one evaluation."""
    h = after - now
    return x + h * drift(x, now) + torch.sqrt(2 * h * diffusion(now)) * noise


def heun_step(
    drift: Callable[[Tensor, float], Tensor],
    diffusion: Callable[[float], Tensor],
    x: Tensor,
    now: float,
    after: float,
    noise: Tensor,
) -> Tensor:
    """Stochastic Heun: weak order 2, because the noise does not depend on the state; two evaluations.

    `p = x + h f(x, t) + g n`, `x' = x + h (f(x, t) + f(p, t + h)) / 2 + g n`, with
    `g^2 = h (w(t) + w(t + h))`, the trapezoidal value of the noise's variance over the step.
    """
    h = after - now
    kick = torch.sqrt(h * (diffusion(now) + diffusion(after))) * noise
    slope = drift(x, now)
    return x + 0.5 * h * (slope + drift(x + h * slope + kick, after)) + kick


@dataclass(frozen=True)
class SdeSolver:
    """A stochastic solver; a user's own is passed wherever a name is taken.

    Args:
        name: what it is called.
        step: `(drift(x, t), w(t), x, now, after, noise) -> x at after`, with normal noise of the shape of `x`.
    """

    name: str
    step: SdeStep


SDE_SOLVERS: Registry[SdeSolver] = Registry("solver", "register_sde_solver adds one of your own")
"""By name."""


def register_sde_solver(solver: SdeSolver) -> SdeSolver:
    """Let a stochastic solver be chosen by its `name`; returns it.

    Raises:
        ConfigError: the name stands for another solver already.
    """
    SDE_SOLVERS.add(solver.name, solver)
    return solver


register_sde_solver(SdeSolver("euler_maruyama", euler_maruyama_step))
register_sde_solver(SdeSolver("heun", heun_step))


def sde_interval(objective: Objective, form: DiffusionForm | str, last_step_size: float) -> TimeInterval:
    """The times of the stochastic steps.

    From 0, or from a margin where the coefficients are infinite at 0 ("SBDM", or a prediction other than velocity, on
    linear and GVP); to `1 - last_step_size`, or to a margin before 1, where the score is infinite.
    """
    margin = max(objective.sample_margin, 1e-3)
    singular = objective.path.singular_start and (
        get_diffusion(form) is DIFFUSIONS["SBDM"] or objective.predicts.converted
    )
    return checked_interval(margin if singular else 0.0, 1.0 - (last_step_size or margin))


@overload
def sample_sde(
    model: Model,
    noise: Tensor,
    objective: Objective,
    *,
    solver: SdeSolver | str = ...,
    steps: int = ...,
    diffusion: DiffusionForm | str = ...,
    diffusion_norm: float = ...,
    last_step: str | None = ...,
    last_step_size: float = ...,
    generator: RandomSource = ...,
    y: Tensor | None = ...,
    conditions: Conditions | None = ...,
    callback: OnStep | None = ...,
    return_info: Literal[False] = ...,
) -> Tensor: ...


@overload
def sample_sde(
    model: Model,
    noise: Tensor,
    objective: Objective,
    *,
    solver: SdeSolver | str = ...,
    steps: int = ...,
    diffusion: DiffusionForm | str = ...,
    diffusion_norm: float = ...,
    last_step: str | None = ...,
    last_step_size: float = ...,
    generator: RandomSource = ...,
    y: Tensor | None = ...,
    conditions: Conditions | None = ...,
    callback: OnStep | None = ...,
    return_info: Literal[True],
) -> tuple[Tensor, SampleInfo]: ...


@explicit_options
@in_evaluation_mode
@torch.no_grad()
def sample_sde(
    model: Model,
    noise: Tensor,
    objective: Objective,
    *,
    solver: SdeSolver | str = "euler_maruyama",
    steps: int = 250,
    diffusion: DiffusionForm | str = "sigma",
    diffusion_norm: float = 1.0,
    last_step: str | None = "mean",
    last_step_size: float = 0.04,
    generator: RandomSource = None,
    y: Tensor | None = None,
    conditions: Conditions | None = None,
    callback: OnStep | None = None,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, SampleInfo]:
    """Carry noise to data along a stochastic differential equation.

    Args:
        model: the network, called as by `sample_ode`.
        noise: (B, C, ...), the start, floating; it is never written to.
        objective: path and prediction.
        solver: `"euler_maruyama"`, `"heun"`, or an `SdeSolver`.
        steps: steps in all, the last step included, so at least 2 where there is one.
        diffusion: form of `w(t)`, a name in `DIFFUSIONS`, or a function `(path, t, norm) -> w(t)`.
        diffusion_norm: its scale, >= 0.
        last_step: from `t = 1 - last_step_size` to the sample, without noise: `"mean"`: `x + h (v + w s)`;
            `"euler"`: `x + h v`; `"tweedie"`: `(x + sigma^2 s) / alpha`, the expected data; `"none"` or None: stop just
            before 1.
        last_step_size: `h` of the last step, in (0, 1).
        generator: source of the increments, see `RandomSource`. With one seed or CPU generator per sample, or one
            generator for all, a sample does not depend on the batch it is drawn in.
        y: (B,), labels.
        conditions: further named conditions of the model.
        callback: called with a `Progress` after every step.
        return_info: also return a `SampleInfo`.

    Returns:
        The sample, (B, C, ...), in float32 at least; with `return_info`, and a `SampleInfo`.

    Raises:
        ConfigError: an unknown name or a bad number.
        ShapeError: the model's output or the generators do not fit.
        SolverError: a number is not finite.
    """
    method = solver if isinstance(solver, SdeSolver) else SDE_SOLVERS.find(solver)
    form = get_diffusion(diffusion)
    last = choose("last_step", last_step, LAST_STEPS)
    count = expect_count("steps", steps, 1 if last == "none" else 2, f"the last step {last!r} is one of them")
    norm = expect_number("diffusion_norm", diffusion_norm, least=0)
    size = 0.0 if last == "none" else expect_number("last_step_size", last_step_size, above=0, below=1)
    x = expect_batch("noise", noise).to(accumulation_dtype(noise.dtype), copy=True)
    expect_conditions(model, y, conditions)
    expect_finite("noise", x, "the start")
    start, end = sde_interval(expect_objective(objective), form, size)
    reached = end if last == "none" else 1.0
    streams = Streams(generator, len(x), "sde")
    if x.numel() == 0:
        return (x, SampleInfo(method.name, 0, 0, 0, start, reached)) if return_info else x
    predict = in_dtype(model, noise.dtype, y, conditions)

    def output_at(times: Tensor, state: Tensor) -> Tensor:
        return predict(state, times).to(state.dtype)

    evaluate = Evaluations(output_at, (start, reached), None, method.name)

    def at(t: float) -> Tensor:
        return torch.full((len(x),), t, device=x.device, dtype=x.dtype)

    def coefficient(t: float) -> Tensor:
        return broadcast_time(form(objective.path, at(t), norm), x)

    def velocity_and_score(state: Tensor, t: float) -> tuple[Tensor, Tensor]:
        output, times = evaluate(t, state), at(t)
        return objective.velocity_from(output, state, times), objective.score_from(output, state, times)

    def drift(state: Tensor, t: float) -> Tensor:
        velocity, score = velocity_and_score(state, t)
        return velocity + coefficient(t) * score

    random_steps = count if last == "none" else count - 1
    for done, (now, after) in enumerate(itertools.pairwise(time_grid(start, end, random_steps)), start=1):
        kick = streams.normal(x.shape[1:], device=x.device, dtype=x.dtype)
        x = method.step(drift, coefficient, x, now, after, kick)
        if callback is not None:
            callback(Progress(done, count, after, x))
    if last != "none":
        velocity, score = velocity_and_score(x, end)
        if last == "tweedie":
            time = broadcast_time(at(end), x)
            x = (x + objective.path.sigma(time) ** 2 * score) / objective.path.alpha(time)
        else:
            slope = velocity + coefficient(end) * score if last == "mean" else velocity
            x = x + (1.0 - end) * slope
        if callback is not None:
            callback(Progress(count, count, 1.0, x))
    expect_finite(method.name, x, "the result; the model may diverge: take more steps, or look at its output")
    info = SampleInfo(method.name, count, evaluate.count, 0, start, reached)
    return (x, info) if return_info else x
