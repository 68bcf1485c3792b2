"""What a network predicts: how its error is measured, and how its output becomes a velocity or a score.

With the path's coefficients at time `t`, the Wronskian `W = alpha' sigma - alpha sigma'` and `g = sigma W / alpha`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from wavemamba.diffusion.paths import Path
from wavemamba.registry import Registry


class Sample(NamedTuple):
    """A point on the path and what it was made from; all (B, ...), times (B, 1, ..., 1)."""

    x0: Tensor
    """Noise."""
    x1: Tensor
    """Data."""
    time: Tensor
    xt: Tensor
    """`alpha x1 + sigma x0`."""
    ut: Tensor
    """`alpha' x1 + sigma' x0`."""


class Prediction(ABC):
    """What a network predicts. A user's own: derive, set `name`, and pass an object wherever a name is taken.

    `register_prediction` lets it be found by its name, so that a saved model can say it.
    """

    name: str
    converted: bool = True
    """Velocity and score are made with factors that are infinite at the path's ends: margins are kept there."""
    weighted: bool = False
    """The error is that of the noise, up to a sign: an objective's weighting applies."""

    @abstractmethod
    def error(self, path: Path, output: Tensor, sample: Sample) -> Tensor:
        """What the loss squares, (B, ...); 0 where the output is exact."""

    @abstractmethod
    def velocity(self, path: Path, output: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """The probability flow's velocity at `x`, from the network's output there; `time` broadcasts over `x`."""

    @abstractmethod
    def score(self, path: Path, output: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """The score `d log p_t / dx` at `x`; infinite where `sigma` is 0."""


class VelocityPrediction(Prediction):
    """The network predicts `u`."""

    name = "velocity"
    converted = False

    def error(self, path: Path, output: Tensor, sample: Sample) -> Tensor:
        """`output - u`."""
        return output - sample.ut

    def velocity(self, path: Path, output: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """The output itself."""
        return output

    def score(self, path: Path, output: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """`(alpha output - alpha' x) / (sigma W)`."""
        return (path.alpha(time) * output - path.alpha_rate(time) * x) / (path.sigma(time) * path.wronskian(time))


class ScorePrediction(Prediction):
    """The network predicts `-x0 / sigma`."""

    name = "score"
    weighted = True

    def error(self, path: Path, output: Tensor, sample: Sample) -> Tensor:
        """`sigma output + x0`."""
        return output * path.sigma(sample.time) + sample.x0

    def velocity(self, path: Path, output: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """`(alpha' / alpha) x + g output`."""
        return path.log_alpha_rate(time) * x + path.score_gain(time) * output

    def score(self, path: Path, output: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """The output itself."""
        return output


class NoisePrediction(Prediction):
    """The network predicts `x0`."""

    name = "noise"
    weighted = True

    def error(self, path: Path, output: Tensor, sample: Sample) -> Tensor:
        """`output - x0`."""
        return output - sample.x0

    def velocity(self, path: Path, output: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """`(alpha' / alpha) x - (g / sigma) output`."""
        return path.log_alpha_rate(time) * x - path.wronskian(time) / path.alpha(time) * output

    def score(self, path: Path, output: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """`-output / sigma`."""
        return -output / path.sigma(time)


PREDICTIONS: Registry[Prediction] = Registry("prediction", "register_prediction adds one of your own")

Weighting = Callable[[Path, Tensor], Tensor]
"""`(path, time) -> w(t)`, the weight of the squared error of the noise."""

WEIGHTINGS: dict[str, Weighting] = {
    "none": lambda path, time: torch.ones_like(time),
    "velocity": lambda path, time: (path.wronskian(time) / path.alpha(time)).square(),
    "likelihood": lambda path, time: path.wronskian(time) / (path.alpha(time) * path.sigma(time)),
}

Own = TypeVar("Own", bound=Prediction)


def register_prediction(prediction: Own) -> Own:
    """Let a prediction be chosen by its `name`; returns it.

    Raises:
        ConfigError: the name stands for another prediction already.
    """
    PREDICTIONS.add(prediction.name, prediction)
    return prediction


for _part in (VelocityPrediction(), ScorePrediction(), NoisePrediction()):
    register_prediction(_part)
