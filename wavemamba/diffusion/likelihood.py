"""Log-likelihood of data under the probability flow."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from wavemamba.diffusion.calls import Conditions, Model, expect_conditions, explicit_options
from wavemamba.diffusion.noise import RandomSource, Streams
from wavemamba.diffusion.objective import Objective
from wavemamba.diffusion.ode import in_dtype
from wavemamba.diffusion.report import Callback, Progress, SampleInfo
from wavemamba.diffusion.solvers import integrate
from wavemamba.errors import ConfigError


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


def bits_per_dim(log_prob: Tensor, dims: int, bin_width: float = 1.0) -> Tensor:
    """`-(log_prob / dims + ln(bin_width)) / ln 2`.

    Args:
        log_prob: log-densities, any shape.
        dims: elements of one sample.
        bin_width: width of a quantisation bin in the data's units: 2 / 256 for 8-bit images scaled to [-1, 1] and
            dequantised with uniform noise; 1 gives the bits of the density itself.
    """
    return -(log_prob / dims + math.log(bin_width)) / math.log(2)


@explicit_options
def log_likelihood(
    model: Model,
    x1: Tensor,
    objective: Objective,
    *,
    solver: str = "dopri5",
    steps: int = 50,
    atol: float = 1e-6,
    rtol: float = 1e-3,
    step_control: str = "batch",
    probes: int = 1,
    bin_width: float = 1.0,
    generator: RandomSource = None,
    y: Tensor | None = None,
    conditions: Conditions | None = None,
    callback: Callback | None = None,
) -> LogLikelihood:
    """Log-likelihood by the instantaneous change of variables, divergence by Hutchinson's estimator.

    `log p(x_1) = log N(x_0; 0, I) - int div v(x_t, t) dt` along the flow through `x_1`, with
    `div v ~ mean_k e_k^T (dv/dx) e_k` for Rademacher probes `e_k`, which stay the same along the trajectory. The
    estimate is unbiased; its variance falls with the number of probes. Data and logarithm are integrated together, each
    held to the tolerances by itself.

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
        probes: number of probes per sample, >= 1.
        bin_width: quantisation bin for the bits, see `bits_per_dim`.
        generator: source of the probes, see `RandomSource`.
        y: (B,), labels.
        conditions: further named conditions of the model.
        callback: called after every step; `Progress.x` is the state on its way to noise.

    Raises:
        ConfigError: an unknown name or a bad number.
        ShapeError: the model's output or the generators do not fit.
        WavemambaError: an adaptive solver cannot go on.
    """
    expect_conditions(model, y, conditions)
    if probes < 1:
        raise ConfigError(f"probes: expected at least 1, got {probes}")
    start, end = objective.sample_interval
    shape = x1.shape
    dims = math.prod(shape[1:])
    dtype = torch.promote_types(x1.dtype, torch.float32)
    streams = Streams(generator, len(x1), "probes")
    directions = [streams.signs(shape[1:], device=x1.device, dtype=dtype) for _ in range(probes)]
    velocity = objective.velocity(in_dtype(model, x1.dtype))

    def dynamics(t: Tensor, state: Tensor) -> Tensor:
        with torch.enable_grad():
            x = state[:, :-1].reshape(shape).detach().requires_grad_()
            v = velocity(x, t, y=y, conditions=conditions)
            traces = []
            for k, e in enumerate(directions):
                (gradient,) = torch.autograd.grad(v, x, e, retain_graph=k + 1 < probes)
                traces.append((gradient * e).flatten(1).sum(1))
        divergence = torch.stack(traces).mean(0)
        return torch.cat([v.detach().flatten(1), divergence[:, None]], dim=1)

    def norm(error: Tensor) -> Tensor:
        # The one logarithm would vanish in a mean over all the pixels.
        return torch.maximum(error[:, :-1].square().mean(1).sqrt(), error[:, -1].abs())

    def unpacked(progress: Progress) -> None:
        if callback is not None:
            callback(progress._replace(x=progress.x[:, :-1].reshape(shape)))

    packed = torch.cat([x1.to(dtype).flatten(1), torch.zeros(len(x1), 1, dtype=dtype, device=x1.device)], dim=1)
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
            norm=norm,
            callback=unpacked if callback is not None else None,
        )
    latent = final[:, :-1]
    prior = -0.5 * (latent.square().sum(1) + dims * math.log(2 * math.pi))
    # Integrated from data to noise, the integral of the divergence comes out negative.
    log_prob = prior + final[:, -1]
    return LogLikelihood(log_prob, bits_per_dim(log_prob, dims, bin_width), latent.reshape(shape), info)
