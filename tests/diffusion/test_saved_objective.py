from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch

from wavemamba import ConfigError
from wavemamba.diffusion import (
    LogitNormalTime,
    Objective,
    Path,
    Prediction,
    VPPath,
    register_path,
    register_prediction,
)

OBJECTIVES = [
    Objective(),
    Objective("linear", "noise", "likelihood"),
    Objective(VPPath(0.2, 10.0), "score", "velocity", time_sampling=LogitNormalTime(0.3, 0.8)),
    Objective("gvp", train_margin=0.01, sample_margin=0.02),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_plain_values_and_back(objective):
    plain = json.loads(json.dumps(objective.to_dict()))
    assert Objective.from_dict(plain) == objective
    assert hash(Objective.from_dict(plain)) == hash(objective)
    assert Objective.from_dict(plain) != Objective("vp")


def test_names_alone_are_enough():
    assert Objective.from_dict({"path": "linear", "prediction": "noise"}) == Objective("linear", "noise")


@pytest.mark.parametrize(
    ("plain", "told"),
    [
        (None, "mapping"),
        ({}, "path and prediction"),
        ({"path": "linear"}, "prediction"),
        ({"path": "liner", "prediction": "noise"}, "did you mean 'linear'"),
        ({"path": "linear", "prediction": "nois"}, "did you mean 'noise'"),
        ({"path": "linear", "prediction": "noise", "weightning": None}, "did you mean weighting"),
        ({"path": 3, "prediction": "noise"}, "path to be a name"),
        ({"path": {"name": "vp", "beta_mix": 1}, "prediction": "noise"}, "beta_mi"),
        ({"path": {"name": "vp", "beta_min": "a"}, "prediction": "noise"}, "beta_min|numbers"),
        ({"path": "linear", "prediction": "noise", "train_margin": "a"}, "train_margin"),
        ({"path": "linear", "prediction": "noise", "train_margin": math.nan}, "train_margin"),
        ({"path": "linear", "prediction": "noise", "time_sampling": ["uniform"]}, "time_sampling"),
    ],
)
def test_damaged_values_are_named(plain, told):
    with pytest.raises(ConfigError, match=told):
        Objective.from_dict(plain)


@dataclass(frozen=True)
class Cubic(Path):
    power: float = 3.0
    name = "cubic_of_the_test"

    def alpha(self, t):
        return t**self.power

    def sigma(self, t):
        return 1 - t**self.power

    def alpha_rate(self, t):
        return self.power * t ** (self.power - 1)

    def sigma_rate(self, t):
        return -self.alpha_rate(t)


class Data(Prediction):
    name = "data_of_the_test"

    def error(self, path, output, sample):
        return output - sample.x1

    def velocity(self, path, output, x, time):
        x0 = (x - path.alpha(time) * output) / path.sigma(time)
        return path.alpha_rate(time) * output + path.sigma_rate(time) * x0

    def score(self, path, output, x, time):
        return -(x - path.alpha(time) * output) / path.sigma(time) ** 2


def test_parts_of_ones_own_are_saved_by_name_once_registered():
    with pytest.raises(ConfigError, match="register_path"):
        Objective(Cubic(2.0)).to_dict()
    register_path(Cubic)
    mine = Data()
    with pytest.raises(ConfigError, match="register_prediction"):
        Objective(Cubic(2.0), mine).to_dict()
    register_prediction(mine)
    objective = Objective(Cubic(2.0), mine)
    assert Objective.from_dict(json.loads(json.dumps(objective.to_dict()))) == objective

    class Other(Cubic):
        pass

    with pytest.raises(ConfigError, match="taken"):
        register_path(Other)


def test_a_prediction_of_ones_own_gives_the_flow_and_score_of_gaussian_data(gaussian):
    path = Cubic(1.5)
    data = gaussian(path)
    objective = Objective(path, Data())
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.linspace(0.2, 0.8, 5, dtype=torch.float64)
    time = t[:, None]
    noise = -path.sigma(time) * data.score(x, t)
    best = (x - path.sigma(time) * noise) / path.alpha(time)
    torch.testing.assert_close(objective.velocity(lambda x, t: best)(x, t), data.velocity(x, t))
    torch.testing.assert_close(objective.score(lambda x, t: best)(x, t), data.score(x, t))
    torch.testing.assert_close(objective.loss(lambda x, t: x1, x1 := torch.ones(5, 2), t=t.float()), torch.zeros(5))
