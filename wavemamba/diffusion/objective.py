"""What a network predicts, how its loss is weighted, and how its output becomes a velocity or a score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wavemamba.diffusion.paths import Path, broadcast_time, get_path
from wavemamba.diffusion.time import TimeInterval, TimeSampling, default_margins, flow_interval, get_time_sampling
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.names import choose

Model = Callable[..., Tensor]
"""`model(x: (B, C, ...), t: (B,), **kwargs) -> (B, C, ...)`, or `(B, 2C, ...)` where it also learns a variance."""

Field = Callable[..., Tensor]
"""`field(x: (B, ...), t: (B,), **kwargs) -> (B, ...)`: a velocity or a score."""

PREDICTIONS = ("velocity", "score", "noise")
WEIGHTINGS = ("none", "velocity", "likelihood")


class Objective:
    """A path, what the network predicts on it, and the loss weight.

    With `g = sigma W / alpha` (`Path.score_gain`), the loss of one sample is the mean over all its elements of

        velocity:  (output - u)^2                       whatever the weighting
        score:     w(t) (sigma output + x0)^2
        noise:     w(t) (output - x0)^2

    and `w` is 1, `(g / sigma)^2` ("velocity": equals the velocity loss up to rounding) or `g / sigma^2`
    ("likelihood": the weight of the likelihood bound).

    Source: Ma et al., SiT, ECCV 2024, section 2; Song et al., "Maximum Likelihood Training of Score-Based Diffusion
    Models", 2021.

    Args:
        path: a path or its name.
        prediction: `"velocity"`, `"score"` or `"noise"`.
        weighting: None, `"velocity"` or `"likelihood"`.
        time_sampling: how `loss` draws times: `"uniform"`, `"logit_normal"` or a `TimeSampling`.
        train_margin: distance to singular end points in training; None: `default_margins`.
        sample_margin: the same when sampling.

    Raises:
        ConfigError: an unknown name or a margin outside [0, 0.5).
    """

    def __init__(
        self,
        path: Path | str = "gvp",
        prediction: str = "velocity",
        weighting: str | None = None,
        *,
        time_sampling: TimeSampling | str = "uniform",
        train_margin: float | None = None,
        sample_margin: float | None = None,
    ) -> None:
        self.path = get_path(path) if isinstance(path, str) else path
        self.prediction = choose("prediction", prediction, PREDICTIONS)
        chosen = choose("weighting", weighting, WEIGHTINGS)
        self.weighting = None if chosen == "none" else chosen
        self.time_sampling = get_time_sampling(time_sampling) if isinstance(time_sampling, str) else time_sampling
        defaults = default_margins(self.path, self.prediction)
        self.train_margin = defaults.train if train_margin is None else train_margin
        self.sample_margin = defaults.sample if sample_margin is None else sample_margin
        for name, margin in (("train_margin", self.train_margin), ("sample_margin", self.sample_margin)):
            if not 0 <= margin < 0.5:
                raise ConfigError(f"{name}: expected 0 <= margin < 0.5, got {margin}; usual values are 0 to 1e-3")

    def __repr__(self) -> str:
        return f"Objective({self.path!r}, {self.prediction!r}, {self.weighting!r})"

    @property
    def train_interval(self) -> TimeInterval:
        """The times that `loss` draws."""
        return flow_interval(self.path, self.prediction, self.train_margin)

    @property
    def sample_interval(self) -> TimeInterval:
        """The times that the probability flow is integrated over."""
        return flow_interval(self.path, self.prediction, self.sample_margin)

    def loss(
        self,
        model: Model,
        x1: Tensor,
        *,
        t: Tensor | None = None,
        x0: Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Loss of every sample; computed in float32 at least, the model is called in the dtype of `x1`.

        Args:
            model: the network.
            x1: (B, C, ...), data.
            t: (B,), times; drawn from `time_sampling` where None.
            x0: (B, C, ...), noise; drawn where None.
            generator: draws `t`, then `x0`.
            **kwargs: passed to the model (labels, for instance).

        Returns:
            (B,), the weighted squared error, averaged over everything but the batch.

        Raises:
            ShapeError: the tensors or the model's output do not fit.
        """
        dtype = torch.promote_types(x1.dtype, torch.float32)
        if t is None:
            t = self.time_sampling.sample(
                len(x1), self.train_interval, generator=generator, device=x1.device, dtype=dtype
            )
        if x0 is None:
            where = x1.device if generator is None else generator.device
            x0 = torch.randn(x1.shape, generator=generator, device=where, dtype=dtype).to(x1.device)
        x0 = x0.to(dtype)
        xt, ut = self.path.interpolate(x0, x1.to(dtype), t.to(dtype))
        output = call_model(model, xt.to(x1.dtype), t, **kwargs).to(dtype)
        time = broadcast_time(t.to(dtype), xt)
        if self.prediction == "velocity":
            error = output - ut
        elif self.prediction == "noise":
            error = output - x0
        else:
            error = output * self.path.sigma(time) + x0
        return (self._weight(time) * error.square()).flatten(1).mean(1)

    def _weight(self, time: Tensor) -> Tensor:
        if self.prediction == "velocity" or self.weighting is None:
            return torch.ones_like(time)
        path = self.path
        if self.weighting == "velocity":
            return (path.wronskian(time) / path.alpha(time)).square()
        return path.wronskian(time) / (path.alpha(time) * path.sigma(time))

    def velocity_from(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The probability flow's velocity at `x`, from the network's output there.

        `(alpha'/alpha) x + g output` for a score, `(alpha'/alpha) x - (g / sigma) output` for a noise prediction.
        """
        if self.prediction == "velocity":
            return output
        time = broadcast_time(t, x)
        path = self.path
        if self.prediction == "score":
            return path.log_alpha_rate(time) * x + path.score_gain(time) * output
        return path.log_alpha_rate(time) * x - path.wronskian(time) / path.alpha(time) * output

    def score_from(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The score `d log p_t / dx` at `x`, from the network's output there.

        `(alpha output - alpha' x) / (sigma W)` for a velocity, `-output / sigma` for a noise prediction; infinite where
        `sigma` is 0.
        """
        if self.prediction == "score":
            return output
        time = broadcast_time(t, x)
        path = self.path
        sigma = path.sigma(time)
        if self.prediction == "noise":
            return -output / sigma
        return (path.alpha(time) * output - path.alpha_rate(time) * x) / (sigma * path.wronskian(time))

    def velocity(self, model: Model) -> Field:
        """The velocity as a function of `(x, t, **kwargs)`, in the dtype of `x`."""

        def field(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
            return self.velocity_from(call_model(model, x, t, **kwargs).to(x.dtype), x, t)

        return field

    def score(self, model: Model) -> Field:
        """The score as a function of `(x, t, **kwargs)`, in the dtype of `x`."""

        def field(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
            return self.score_from(call_model(model, x, t, **kwargs).to(x.dtype), x, t)

        return field


def call_model(model: Model, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
    """Call the network and keep the half of its output that predicts.

    A network that also learns a variance returns twice the channels; the first half is the prediction, as in the
    released code.

    Raises:
        ShapeError: the output has neither the channels of `x` nor twice as many.
    """
    output = model(x, t, **kwargs)
    if output.shape == x.shape:
        return output
    if x.ndim > 1 and output.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
        return output[:, : x.shape[1]]
    raise ShapeError(
        f"model output: expected {tuple(x.shape)}, or twice the channels where a variance is learnt, "
        f"got {tuple(output.shape)}; check the model's in and out channels"
    )
