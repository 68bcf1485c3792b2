"""A path, what a network predicts on it, and how that is learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from wavemamba.checks import expect_floating, expect_number
from wavemamba.diffusion.calls import Conditions, Model, call_model, expect_conditions, explicit_options
from wavemamba.diffusion.paths import PATHS, Path, broadcast_time, get_path
from wavemamba.diffusion.predictions import PREDICTIONS, WEIGHTINGS, Prediction, Sample
from wavemamba.diffusion.time import (
    TIME_SAMPLINGS,
    TimeInterval,
    TimeSampling,
    default_margins,
    flow_interval,
    get_time_sampling,
)
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.names import check_names, choose
from wavemamba.registry import Registry

Field = Callable[..., Tensor]
"""`field(x: (B, ...), t: (B,), *, y=None, conditions=None) -> (B, ...)`: a velocity or a score."""


class Objective:
    """A path, what the network predicts on it, and the loss weight.

    The loss of one sample is the mean over all its elements of `w(t) error^2`. With `g = sigma W / alpha`
    (`Path.score_gain`):

        velocity:  error = output - u, and no weight
        score:     error = sigma output + x0
        noise:     error = output - x0

    and `w` is 1, `(g / sigma)^2` ("velocity": equals the velocity loss up to rounding) or `g / sigma^2`
    ("likelihood": the weight of the likelihood bound).

    Source: Ma et al., SiT, ECCV 2024, section 2; Song et al., "Maximum Likelihood Training of Score-Based Diffusion
    Models", 2021.

    Args:
        path: a path or its name.
        prediction: `"velocity"`, `"score"`, `"noise"`, or a `Prediction`.
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
        prediction: Prediction | str = "velocity",
        weighting: str | None = None,
        *,
        time_sampling: TimeSampling | str = "uniform",
        train_margin: float | None = None,
        sample_margin: float | None = None,
    ) -> None:
        self.path = path if isinstance(path, Path) else get_path(path)
        self.predicts = prediction if isinstance(prediction, Prediction) else PREDICTIONS.find(prediction)
        chosen = choose("weighting", weighting, WEIGHTINGS)
        self.weighting = None if chosen == "none" else chosen
        self.time_sampling = (
            time_sampling if isinstance(time_sampling, TimeSampling) else get_time_sampling(time_sampling)
        )
        defaults = default_margins(self.path, self.predicts.converted)
        self.train_margin = _margin("train_margin", train_margin, defaults.train)
        self.sample_margin = _margin("sample_margin", sample_margin, defaults.sample)

    def __repr__(self) -> str:
        return f"Objective({self.path!r}, {self.prediction!r}, {self.weighting!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Objective) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.path.name, self.prediction, self.weighting, self.train_margin, self.sample_margin))

    @property
    def prediction(self) -> str:
        """The name of what the network predicts."""
        return self.predicts.name

    @property
    def train_interval(self) -> TimeInterval:
        """The times that `loss` draws."""
        return flow_interval(self.path, self.predicts.converted, self.train_margin)

    @property
    def sample_interval(self) -> TimeInterval:
        """The times that the probability flow is integrated over."""
        return flow_interval(self.path, self.predicts.converted, self.sample_margin)

    def to_dict(self) -> dict[str, Any]:
        """Names and plain values, as JSON holds them; `from_dict` reads them.

        Raises:
            ConfigError: a part of the user's own is not registered, or is no dataclass and yet has options.
        """
        if not _registered(PREDICTIONS, self.prediction, self.predicts):
            raise ConfigError(
                f"prediction: expected a registered one, to be saved by name, got {self.prediction!r}; call "
                "wavemamba.diffusion.register_prediction with it first"
            )
        return {
            "path": _part_to_dict(self.path, self.path.name, PATHS),
            "prediction": self.prediction,
            "weighting": self.weighting,
            "time_sampling": _part_to_dict(self.time_sampling, self.time_sampling.name, TIME_SAMPLINGS),
            "train_margin": self.train_margin,
            "sample_margin": self.sample_margin,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Objective:
        """The objective that `to_dict` wrote.

        Args:
            plain: at least `path` and `prediction`. A path and a time sampling are names, or mappings of `name` and
                options.

        Raises:
            ConfigError: an unknown or missing name, or a value that does not fit.
        """
        if not isinstance(plain, Mapping):
            raise ConfigError(f"objective: expected a mapping with path and prediction, got {plain!r}")
        fields = ("path", "prediction", "weighting", "time_sampling", "train_margin", "sample_margin")
        check_names(plain, fields, "entry of an objective")
        if missing := [name for name in fields[:2] if name not in plain]:
            raise ConfigError(f"objective: expected the entries path and prediction, {missing} missing; add them")
        values = dict(plain)
        values["path"] = _part_from("path", values["path"], get_path)
        if "time_sampling" in values:
            values["time_sampling"] = _part_from("time_sampling", values["time_sampling"], get_time_sampling)
        return cls(values.pop("path"), values.pop("prediction"), values.pop("weighting", None), **values)

    @explicit_options
    def loss(
        self,
        model: Model,
        x1: Tensor,
        *,
        t: Tensor | None = None,
        x0: Tensor | None = None,
        y: Tensor | None = None,
        conditions: Conditions | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Loss of every sample; computed in float32 at least, the model is called in the dtype of `x1`.

        Args:
            model: the network.
            x1: (B, C, ...), data.
            t: (B,), times; drawn from `time_sampling` where None.
            x0: (B, C, ...), noise; drawn where None.
            y: (B,), labels, passed to the model where there are any.
            conditions: further named conditions of the model.
            generator: draws `t`, then `x0`.

        Returns:
            (B,), the weighted squared error, averaged over everything but the batch.

        Raises:
            ConfigError: an option or a condition of an unknown name.
            ShapeError: the tensors or the model's output do not fit.
        """
        x1 = expect_batch("x1", x1)
        expect_conditions(model, y, conditions)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ConfigError(f"generator: expected a torch.Generator, got {generator!r}; make one with manual_seed")
        if t is not None and not isinstance(t, Tensor):
            raise ShapeError(f"t: expected a tensor (B,), got {type(t).__name__}; make one with torch.as_tensor")
        dtype = accumulation_dtype(x1.dtype)
        if t is None:
            t = self.time_sampling.sample(
                len(x1), self.train_interval, generator=generator, device=x1.device, dtype=dtype
            )
        if x0 is None:
            where = x1.device if generator is None else generator.device
            x0 = torch.randn(x1.shape, generator=generator, device=where, dtype=dtype).to(x1.device)
        x0, x1_wide = expect_batch("x0", x0).to(dtype), x1.to(dtype)
        xt, ut = self.path.interpolate(x0, x1_wide, t.to(dtype))
        output = call_model(model, xt.to(x1.dtype), t, y, conditions).to(dtype)
        time = broadcast_time(t.to(dtype), xt)
        error = self.predicts.error(self.path, output, Sample(x0, x1_wide, time, xt, ut)).square()
        if self.weighting is not None and self.predicts.weighted:
            error = WEIGHTINGS[self.weighting](self.path, time) * error
        return rows(error).mean(1)

    def velocity_from(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The probability flow's velocity at `x`, from the network's output there; `t` is (B,)."""
        return self.predicts.velocity(self.path, output, x, broadcast_time(t, x))

    def score_from(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The score `d log p_t / dx` at `x`, from the network's output there; infinite where `sigma` is 0."""
        return self.predicts.score(self.path, output, x, broadcast_time(t, x))

    def velocity(self, model: Model) -> Field:
        """The velocity as a function of `(x, t, *, y=None, conditions=None)`, in the dtype of `x`."""

        @explicit_options
        def velocity(x: Tensor, t: Tensor, *, y: Tensor | None = None, conditions: Conditions | None = None) -> Tensor:
            expect_conditions(model, y, conditions)
            return self.velocity_from(call_model(model, x, t, y, conditions).to(x.dtype), x, t)

        return velocity

    def score(self, model: Model) -> Field:
        """The score as a function of `(x, t, *, y=None, conditions=None)`, in the dtype of `x`."""

        @explicit_options
        def score(x: Tensor, t: Tensor, *, y: Tensor | None = None, conditions: Conditions | None = None) -> Tensor:
            expect_conditions(model, y, conditions)
            return self.score_from(call_model(model, x, t, y, conditions).to(x.dtype), x, t)

        return score


def expect_batch(name: str, x: Tensor) -> Tensor:
    """Return a floating tensor with a batch axis.

    Raises:
        ShapeError: no tensor, not floating, or of rank 0.
    """
    if not isinstance(x, Tensor):
        raise ShapeError(
            f"{name}: expected a tensor (B, C, ...), got {type(x).__name__}; make one with torch.as_tensor"
        )
    expect_floating(name, x)
    if x.layout != torch.strided or x.is_nested:
        raise ShapeError(f"{name}: expected a dense tensor, got {x.layout}; make it one with .to_dense()")
    if x.element_size() < 2:
        raise ShapeError(f"{name}: expected a dtype that is computed in, got {x.dtype}; convert it with .float()")
    if x.ndim == 0:
        raise ShapeError(f"{name}: expected (B, C, ...), got a single number; add a batch axis with x[None]")
    return x


def expect_objective(objective: Objective) -> Objective:
    """Return the objective.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(objective, Objective):
        raise ConfigError(f"objective: expected an Objective(path, prediction), got {objective!r}")
    return objective


def rows(x: Tensor) -> Tensor:
    """(B, ...) to (B, elements)."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def _margin(name: str, given: float | None, default: float) -> float:
    return default if given is None else expect_number(name, given, least=0, below=0.5, remedy="1e-3 is usual")


def _part_to_dict(part: Any, name: str, registry: Registry[Any]) -> dict[str, Any]:
    if not _registered(registry, name, type(part)):
        raise ConfigError(
            f"{registry.what}: expected a registered class, to be saved by name, got {type(part).__name__}; "
            f"decorate it with wavemamba.diffusion.register_{registry.what.replace(' ', '_')}"
        )
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return {"name": name, **dataclasses.asdict(part)}
    if vars(part):
        raise ConfigError(f"{registry.what} {name!r}: expected a dataclass, whose options are its fields; make it one")
    return {"name": name}


def _registered(registry: Registry[Any], name: str, part: Any) -> bool:
    return name.casefold() in registry and registry.find(name) is part


def _part_from(what: str, plain: Any, get: Callable[..., Any]) -> Any:
    options = {"name": plain} if isinstance(plain, str) else plain
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        raise ConfigError(f"objective: expected {what} to be a name, or a mapping with a name, got {plain!r}")
    try:
        return get(**options)
    except TypeError as error:
        raise ConfigError(f"objective: expected numbers as options of {what}, got {plain!r} ({error})") from error
