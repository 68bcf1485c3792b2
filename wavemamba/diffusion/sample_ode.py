"""Sampling along the probability flow ODE."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from wavemamba.diffusion.calls import (
    Conditions,
    Model,
    call_model,
    expect_conditions,
    explicit_options,
    in_evaluation_mode,
)
from wavemamba.diffusion.objective import Objective, expect_batch, expect_objective
from wavemamba.diffusion.report import OnStep, SampleInfo
from wavemamba.diffusion.solvers.base import Dynamics, OdeSolver
from wavemamba.diffusion.solvers.integrate import MAX_EVALUATIONS, integrate
from wavemamba.dtypes import accumulation_dtype


@overload
def sample_ode(
    model: Model,
    noise: Tensor,
    objective: Objective,
    *,
    solver: OdeSolver | str = ...,
    steps: int = ...,
    atol: float = ...,
    rtol: float = ...,
    step_control: str = ...,
    overshoot: bool = ...,
    max_evaluations: int = ...,
    options: dict[str, Any] | None = ...,
    y: Tensor | None = ...,
    conditions: Conditions | None = ...,
    callback: OnStep | None = ...,
    return_info: Literal[False] = ...,
) -> Tensor: ...


@overload
def sample_ode(
    model: Model,
    noise: Tensor,
    objective: Objective,
    *,
    solver: OdeSolver | str = ...,
    steps: int = ...,
    atol: float = ...,
    rtol: float = ...,
    step_control: str = ...,
    overshoot: bool = ...,
    max_evaluations: int = ...,
    options: dict[str, Any] | None = ...,
    y: Tensor | None = ...,
    conditions: Conditions | None = ...,
    callback: OnStep | None = ...,
    return_info: Literal[True],
) -> tuple[Tensor, SampleInfo]: ...


@explicit_options
@in_evaluation_mode
@torch.no_grad()
def sample_ode(
    model: Model,
    noise: Tensor,
    objective: Objective,
    *,
    solver: OdeSolver | str = "dopri5",
    steps: int = 50,
    atol: float = 1e-6,
    rtol: float = 1e-3,
    step_control: str = "batch",
    overshoot: bool = False,
    max_evaluations: int = MAX_EVALUATIONS,
    options: dict[str, Any] | None = None,
    y: Tensor | None = None,
    conditions: Conditions | None = None,
    callback: OnStep | None = None,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, SampleInfo]:
    """Carry noise to data along `dx/dt = v(x, t)`, over `objective.sample_interval`.

    A sample depends on its own noise and conditions alone, up to rounding, with every fixed-step solver and with
    `step_control="sample"`. An adaptive solver with `step_control="batch"` chooses its steps from the error of the
    whole batch, and so moves a sample within the tolerance when its neighbours change.

    No gradient is recorded: to differentiate through the flow, integrate `objective.velocity(model)`.

    Args:
        model: the network, called as `model(x, t)`, with `y=` and the conditions where there are any; `x` is in the
            dtype of `noise`, `t: (B,)` in the dtype of the integration. Its modules are in evaluation mode meanwhile,
            but those inside a function, which are not seen.
        noise: (B, C, ...), floating, see `sample_noise`; it is never written to.
        objective: path and prediction.
        solver: a name in `ODE_SOLVERS`, torchdiffeq's names and "heun", or an `OdeSolver`.
        steps: steps of a fixed-step solver: Euler calls the model `steps` times, Heun `2 * steps`. `steps` equal
            steps are `steps + 1` time points; the released code's `num_steps` counts the points. Adaptive solvers
            choose their own steps.
        atol: absolute tolerance of adaptive solvers.
        rtol: relative tolerance of adaptive solvers.
        step_control: `"batch"` or `"sample"`, see `integrate`.
        overshoot: let an adaptive solver step past the last time and interpolate back, see `integrate`. dopri5 on a
            predicted velocity then gives the released sampler's numbers; the network is shown times up to one step
            beyond 1, which DiMSUM models refuse.
        max_evaluations: calls of the model after which an adaptive solver gives up.
        options: torchdiffeq's options, for solvers that run there.
        y: (B,), labels.
        conditions: further named conditions of the model.
        callback: called with a `Progress` after every step.
        return_info: also return a `SampleInfo` with the number of steps and function evaluations.

    Returns:
        The sample, (B, C, ...), in float32 at least; with `return_info`, and a `SampleInfo`.

    Raises:
        ConfigError: an unknown name or a bad number.
        ShapeError: the model's output does not fit.
        SolverError: an adaptive solver cannot go on, or a number is not finite.
    """
    noise = expect_batch("noise", noise)
    expect_conditions(model, y, conditions)
    start, end = expect_objective(objective).sample_interval
    velocity = objective.velocity(in_dtype(model, noise.dtype, y, conditions))
    sample, info = integrate(
        lambda t, x: velocity(x, t),
        noise.to(accumulation_dtype(noise.dtype)),
        start,
        end,
        solver=solver,
        steps=steps,
        atol=atol,
        rtol=rtol,
        step_control=step_control,
        overshoot=overshoot,
        max_evaluations=max_evaluations,
        options=options,
        callback=callback,
    )
    return (sample, info) if return_info else sample


def in_dtype(model: Model, dtype: torch.dtype, y: Tensor | None, conditions: Conditions | None) -> Dynamics:
    """The network's prediction under its conditions, fed with `x` in `dtype`: solvers keep float32 at least."""

    def prediction(x: Tensor, t: Tensor) -> Tensor:
        return call_model(model, x.to(dtype), t, y, conditions)

    return prediction
