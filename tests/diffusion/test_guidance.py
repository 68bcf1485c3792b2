from __future__ import annotations

import math

import pytest
import torch

from wavemamba import ConfigError, ShapeError
from wavemamba.diffusion import ClassifierFreeGuidance, Objective, sample_noise, sample_ode, sample_sde


class Network:
    """Predicts the label, plus whatever it is given; notes every call."""

    null_class = 10

    def __init__(self, variance: bool = False) -> None:
        self.variance = variance
        self.calls: list[dict] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, **extra) -> torch.Tensor:
        self.calls.append({"x": x, "t": t, "y": y, **extra})
        out = x + y.to(x.dtype).view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1)
        return torch.cat([out, out + 100], dim=1) if self.variance else out


X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.0, 0.25, 1.0])
Y = torch.tensor([1, 4, 7])


def expected(scale: torch.Tensor) -> torch.Tensor:
    conditional, null = (
        X + label.view(-1, 1, 1, 1) + T.view(-1, 1, 1, 1) for label in (Y.float(), torch.full((3,), 10.0))
    )
    return null + scale.view(-1, 1, 1, 1) * (conditional - null)


def test_constant_in_one_call() -> None:
    network = Network()
    out = ClassifierFreeGuidance(network, 2.5)(X, T, y=Y)
    torch.testing.assert_close(out, expected(torch.full((3,), 2.5)))
    (call,) = network.calls
    assert call["x"].shape == (6, 2, 4, 4)
    assert call["y"].tolist() == [1, 4, 7, 10, 10, 10]


def test_power_cosine() -> None:
    guided = ClassifierFreeGuidance(Network(), 3.8, schedule="power_cosine", power=2.0)
    middle = 1 + 2.8 * (1 - math.cos(math.pi * 0.75**2)) / 2
    scale = torch.tensor([3.8, middle, 1.0])
    torch.testing.assert_close(guided.scale_at(T), scale)
    torch.testing.assert_close(guided(X, T, y=Y), expected(scale))


def test_interval() -> None:
    guided = ClassifierFreeGuidance(Network(), 3.0, interval=(0.1, 0.25))
    torch.testing.assert_close(guided(X, T, y=Y), expected(torch.tensor([1.0, 3.0, 1.0])))


def test_scale_one_is_conditional_and_zero_unconditional() -> None:
    torch.testing.assert_close(ClassifierFreeGuidance(Network(), 1.0)(X, T, y=Y), Network()(X, T, Y))
    null = torch.full((3,), 10)
    torch.testing.assert_close(ClassifierFreeGuidance(Network(), 0.0)(X, T, y=Y), Network()(X, T, null))


def test_learnt_variance_stays_conditional() -> None:
    out = ClassifierFreeGuidance(Network(variance=True), 2.0)(X, T, y=Y)
    torch.testing.assert_close(out[:, :2], expected(torch.full((3,), 2.0)))
    torch.testing.assert_close(out[:, 2:], expected(torch.ones(3)) + 100)


def test_other_conditions_are_repeated_where_they_are_per_sample() -> None:
    network = Network()
    per_sample, shared, number = torch.arange(3.0), torch.arange(5.0), torch.tensor(3.0)
    ClassifierFreeGuidance(network, 2.0)(X, T, y=Y, mask=per_sample, table=shared, number=number, flag=True)
    (call,) = network.calls
    assert call["mask"].tolist() == [0, 1, 2, 0, 1, 2]
    assert call["table"] is shared
    assert call["number"] is number
    assert call["flag"] is True


def test_in_samplers() -> None:
    network = Network()
    guided = ClassifierFreeGuidance(network, 1.5)
    noise = sample_noise(X.shape, seeds=range(3))
    _, info = sample_ode(guided, noise, Objective("gvp"), solver="heun", steps=3, y=Y, return_info=True)
    assert info.nfe == len(network.calls) == 6
    assert sample_sde(guided, noise, Objective("gvp"), steps=3, y=Y).shape == X.shape


def test_unconditional_models_and_bad_numbers_are_refused() -> None:
    network = Network()
    network.null_class = None
    for model in (network, lambda x, t, y: x):
        with pytest.raises(ConfigError, match="null class"):
            ClassifierFreeGuidance(model, 2.0)
    assert ClassifierFreeGuidance(lambda x, t, y: x, 2.0, null_class=3).null_class == 3
    with pytest.raises(ConfigError, match=r"schedule.*did you mean 'power_cosine'"):
        ClassifierFreeGuidance(Network(), 2.0, schedule="power-cosin")
    for options in ({"scale": -1.0}, {"scale": math.nan}, {"interval": (0.5, 0.2)}, {"power": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            ClassifierFreeGuidance(Network(), **{"scale": 2.0, **options})
    with pytest.raises(ConfigError, match="labels"):
        ClassifierFreeGuidance(Network(), 2.0)(X, T)
    with pytest.raises(ShapeError, match="one label per sample"):
        ClassifierFreeGuidance(Network(), 2.0)(X, T, y=Y[:2])
