"""Log-likelihood of data under the probability flow."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from wavemamba.checks import expect_count, expect_number
from wavemamba.diffusion.calls import (
    Conditions,
    Model,
    call_model,
    expect_conditions,
    explicit_options,
    in_evaluation_mode,
)
from wavemamba.diffusion.noise import RandomSource, Streams
from wavemamba.diffusion.objective import Objective, expect_batch, expect_objective, rows
from wavemamba.diffusion.report import OnStep, Progress, SampleInfo
from wavemamba.diffusion.solvers.base import OdeSolver
from wavemamba.diffusion.solvers.integrate import MAX_EVALUATIONS, integrate
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError, ShapeError


class LogLikelihood(NamedTuple):
    """What `log_likelihood` returns."""

    log_prob: Tensor
    """(B,), natural logarithm of the density of the data."""
    bits_per_dim: Tensor
    """(B,), see `bits_per_dim`."""
    latent: Tensor
    """(B, ...), the noise that the flow connects with the data."""
    info: SampleInfo
    """Steps and function evaluations; one evaluation is a forward and `probes` backward passes."""

    def __repr__(self) -> str:
        return f"LogLikelihood(of {len(self.log_prob)} samples {tuple(self.latent.shape[1:])}, {self.info})"


def bits_per_dim(log_prob: Tensor, dims: int, bin_width: float = 1.0) -> Tensor:
    """`-(log_prob / dims + ln(bin_width)) / ln 2`.

    Args:
        log_prob: log-densities, any shape.
        dims: elements of one sample.
        bin_width: width of a quantisation bin in the data's units: 2 / 256 for 8-bit images scaled to [-1, 1] and
            dequantised with uniform noise; 1 gives the bits of the density itself.
    """
    width = expect_number("bin_width", bin_width, above=0)
    return -(log_prob / expect_count("dims", dims, 1) + math.log(width)) / math.log(2)


@explicit_options
@in_evaluation_mode
def log_likelihood(
    model: Model,
    x1: Tensor,
    objective: Objective,
    *,
    solver: OdeSolver | str = "dopri5",
    steps: int = 50,
    atol: float = 1e-6,
    rtol: float = 1e-3,
    step_control: str = "batch",
    max_evaluations: int = MAX_EVALUATIONS,
    probes: int = 1,
    bin_width: float = 1.0,
    generator: RandomSource = None,
    y: Tensor | None = None,
    conditions: Conditions | None = None,
    callback: OnStep | None = None,
) -> LogLikelihood:
    """Log-likelihood by the instantaneous change of variables, divergence by Hutchinson's estimator.

    `log p(x_1) = log N(x_0; 0, I) - int div v(x_t, t) dt` along the flow through `x_1`, with
    `div v ~ mean_k e_k^T (dv/dx) e_k` for Rademacher probes `e_k`, which stay the same along the trajectory. The
    estimate is unbiased; its variance falls with the number of probes. Data and logarithm are integrated together, each
    held to the tolerances by itself (but by scipy_solver, which has its own norm).

    Source: Grathwohl et al., "FFJORD", ICLR 2019; Song et al., ICLR 2021, section 4.3.

    Args:
        model: the network, called as by `sample_ode`; differentiable in `x`.
        x1: (B, C, ...), data.
        objective: path and prediction.
        solver: as in `sample_ode`.
        steps: as in `sample_ode`.
        atol: as in `sample_ode`.
        rtol: as in `sample_ode`.
        step_control: as in `sample_ode`.
        max_evaluations: as in `sample_ode`.
        probes: number of probes per sample, >= 1.
        bin_width: quantisation bin for the bits, see `bits_per_dim`.
        generator: source of the probes, see `RandomSource`.
        y: (B,), labels.
        conditions: further named conditions of the model.
        callback: called after every step; `Progress.x` is the state on its way to noise.

    Raises:
        ConfigError: an unknown name or a bad number.
        ShapeError: the model's output or the generators do not fit, or a sample has no element.
        SolverError: an adaptive solver cannot go on, or a number is not finite.
    """
    probe_count = expect_count("probes", probes, 1)
    width = expect_number("bin_width", bin_width, above=0)
    x1 = expect_batch("x1", x1)
    expect_conditions(model, y, conditions)
    start, end = expect_objective(objective).sample_interval
    shape = x1.shape
    dims = math.prod(shape[1:])
    if dims == 0:
        raise ShapeError(f"x1: expected samples of one element or more, got {tuple(shape)}")
    dtype = accumulation_dtype(x1.dtype)
    streams = Streams(generator, len(x1), "probes")
    directions = [streams.signs(shape[1:], device=x1.device, dtype=dtype) for _ in range(probe_count)]

    def differentiable(x: Tensor, t: Tensor) -> Tensor:
        output = call_model(model, x.to(x1.dtype), t, y, conditions)
        if not output.requires_grad:
            raise ConfigError(
                "model output: expected one that can be differentiated in x, got one without a gradient; call it "
                "without torch.no_grad, or add 0 * x where it does not depend on x"
            )
        return output

    velocity = objective.velocity(differentiable)

    def dynamics(t: Tensor, state: Tensor) -> Tensor:
        # What is made in inference mode cannot be differentiated: copies are.
        with torch.inference_mode(False), torch.enable_grad():
            x = state[:, :-1].reshape(shape).detach().clone().requires_grad_()
            v = velocity(x, t.clone())
            traces = []
            for k, e in enumerate(directions):
                direction = e.clone()
                (gradient,) = torch.autograd.grad(
                    v, x, direction, retain_graph=k + 1 < probe_count, allow_unused=True, materialize_grads=True
                )
                traces.append(rows(gradient * direction).sum(1))
            return torch.cat([rows(v.detach()), torch.stack(traces).mean(0)[:, None]], dim=1)

    def norm(error: Tensor) -> Tensor:
        # The one logarithm would vanish in a mean over all the pixels.
        return torch.maximum(error[:, :-1].square().mean(1).sqrt(), error[:, -1].abs())

    def unpacked(progress: Progress) -> None:
        if callback is not None:
            callback(progress._replace(x=progress.x[:, :-1].reshape(shape)))

    packed = torch.cat([rows(x1.to(dtype)), torch.zeros(len(x1), 1, dtype=dtype, device=x1.device)], dim=1)
    with torch.no_grad():
        final, info = integrate(
            dynamics,
            packed.detach(),
            end,
            start,
            solver=solver,
            steps=steps,
            atol=atol,
            rtol=rtol,
            step_control=step_control,
            max_evaluations=max_evaluations,
            norm=norm,
            callback=unpacked if callback is not None else None,
        )
    latent = final[:, :-1]
    prior = -0.5 * (latent.square().sum(1) + dims * math.log(2 * math.pi))
    # Integrated from data to noise, the integral of the divergence comes out negative.
    log_prob = prior + final[:, -1]
    return LogLikelihood(log_prob, bits_per_dim(log_prob, dims, width), latent.reshape(shape), info)
