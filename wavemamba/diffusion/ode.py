"""Sampling along the probability flow ODE."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from wavemamba.diffusion.objective import Field, Model, Objective, call_model
from wavemamba.diffusion.report import Callback, SampleInfo
from wavemamba.diffusion.solvers import ODE_SOLVERS, integrate
from wavemamba.names import choose


@overload
def sample_ode(
    model: Model,
    noise: Tensor,
    objective: Objective,
    *,
    solver: str = ...,
    steps: int = ...,
    atol: float = ...,
    rtol: float = ...,
    step_control: str = ...,
    overshoot: bool | None = ...,
    options: dict[str, Any] | None = ...,
    callback: Callback | None = ...,
    return_info: Literal[False] = ...,
    **kwargs: Any,
) -> Tensor: ...


@overload
def sample_ode(
    model: Model,
    noise: Tensor,
    objective: Objective,
    *,
    solver: str = ...,
    steps: int = ...,
    atol: float = ...,
    rtol: float = ...,
    step_control: str = ...,
    overshoot: bool | None = ...,
    options: dict[str, Any] | None = ...,
    callback: Callback | None = ...,
    return_info: Literal[True],
    **kwargs: Any,
) -> tuple[Tensor, SampleInfo]: ...


@torch.no_grad()
def sample_ode(
    model: Model,
    noise: Tensor,
    objective: Objective,
    *,
    solver: str = "dopri5",
    steps: int = 50,
    atol: float = 1e-6,
    rtol: float = 1e-3,
    step_control: str = "batch",
    overshoot: bool | None = None,
    options: dict[str, Any] | None = None,
    callback: Callback | None = None,
    return_info: bool = False,
    **kwargs: Any,
) -> Tensor | tuple[Tensor, SampleInfo]:
    """Carry noise to data along `dx/dt = v(x, t)`, over `objective.sample_interval`.

    A sample depends on its own noise and conditions alone, up to rounding, with every fixed-step solver and with
    `step_control="sample"`. An adaptive solver with `step_control="batch"` chooses its steps from the error of the
    whole batch, and so moves a sample within the tolerance when its neighbours change.

    No gradient is recorded: to differentiate through the flow, integrate `objective.velocity(model)`.

    Args:
        model: the network, called as `model(x, t, **kwargs)` with `x` in the dtype of `noise` and `t: (B,)` in the
            dtype of the integration.
        noise: (B, C, ...), see `sample_noise`.
        objective: path and prediction.
        solver: a name in `ODE_SOLVERS`, torchdiffeq's names and "heun".
        steps: steps of a fixed-step solver: Euler calls the model `steps` times, Heun `2 * steps`. `steps` equal
            steps are `steps + 1` time points; the released code's `num_steps` counts the points. Adaptive solvers
            choose their own steps.
        atol: absolute tolerance of adaptive solvers.
        rtol: relative tolerance of adaptive solvers.
        step_control: `"batch"` or `"sample"` (dopri5 and bosh3), see `integrate`.
        overshoot: let an adaptive solver step past the last time and interpolate back, see `integrate`. None: only
            dopri5 on a predicted velocity, which then gives the released sampler's numbers; it shows the network
            times up to one step beyond 1, and so is not done to a model with a `time_range`, as DiMSUM has.
        options: torchdiffeq's options, for solvers that run there.
        callback: called with a `Progress` after every step.
        return_info: also return a `SampleInfo` with the number of steps and function evaluations.
        **kwargs: passed to the model.

    Returns:
        The sample, (B, C, ...), in float32 at least; with `return_info`, and a `SampleInfo`.

    Raises:
        ConfigError: an unknown name or a bad number.
        ShapeError: the model's output does not fit.
        WavemambaError: an adaptive solver cannot go on.
    """
    start, end = objective.sample_interval
    if overshoot is None:
        released = choose("solver", solver, ODE_SOLVERS) == "dopri5" and objective.prediction == "velocity"
        overshoot = released and getattr(model, "time_range", None) is None
    velocity = objective.velocity(in_dtype(model, noise.dtype))
    sample, info = integrate(
        lambda t, x: velocity(x, t, **kwargs),
        noise.to(torch.promote_types(noise.dtype, torch.float32)),
        start,
        end,
        solver=solver,
        steps=steps,
        atol=atol,
        rtol=rtol,
        step_control=step_control,
        overshoot=overshoot,
        options=options,
        callback=callback,
    )
    return (sample, info) if return_info else sample


def in_dtype(model: Model, dtype: torch.dtype) -> Field:
    """The network's prediction, fed with `x` in `dtype`: solvers keep their state in float32 at least."""

    def prediction(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        return call_model(model, x.to(dtype), t, **kwargs)

    return prediction
