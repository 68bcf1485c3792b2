from __future__ import annotations

import pytest
import torch

from wavemamba import ConfigError, ShapeError
from wavemamba.diffusion import LogitNormalTime, Objective, TimeInterval, UniformTime, get_time_sampling


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("prediction", ["score", "noise"])
@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_velocity_weighting_is_the_velocity_loss(path: str, prediction: str) -> None:
    """The weight is what turns a score or noise error into the error of the velocity made from it."""
    objective = Objective(path, prediction, "velocity")
    x0, x1 = torch.randn(2, 4, 2, 3, dtype=torch.float64, generator=seeded()).unbind(0)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + t.view(-1, 1, 1)

    converted = Objective(path).loss(objective.velocity(model), x1, t=t, x0=x0)
    torch.testing.assert_close(objective.loss(model, x1, t=t, x0=x0), converted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("prediction", ["velocity", "score", "noise"])
@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_default_times_give_finite_losses_and_gradients(path: str, prediction: str) -> None:
    gain = torch.ones(1, requires_grad=True)
    for weighting in (None, "velocity", "likelihood"):
        objective = Objective(path, prediction, weighting)
        start, end = objective.train_interval
        for t in (start, end):
            loss = objective.loss(lambda x, t: gain * x, torch.ones(3, 2), t=torch.full((3,), t), generator=seeded())
            assert loss.shape == (3,)
            (gradient,) = torch.autograd.grad(loss.sum(), gain)
            assert torch.isfinite(loss).all()
            assert torch.isfinite(gradient).all()


def test_loss_draws_from_the_generator_and_passes_conditions() -> None:
    x1 = torch.randn(4, 2, 3, generator=seeded(1))
    seen = []

    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append((t, y))
        return x * 0.5

    objective = Objective("gvp")
    y = torch.arange(4)
    first = objective.loss(model, x1, generator=seeded(2), y=y)
    assert torch.equal(first, objective.loss(model, x1, generator=seeded(2), y=y))
    assert not torch.equal(first, objective.loss(model, x1, generator=seeded(3), y=y))
    assert torch.equal(seen[0][1], y)


def test_low_precision_data_is_accumulated_in_float32() -> None:
    x0, x1 = torch.randn(2, 3, 2, 8, generator=seeded()).bfloat16().unbind(0)
    t = torch.tensor([0.2, 0.5, 0.8])
    dtypes = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        dtypes.append((x.dtype, t.dtype))
        return torch.zeros_like(x)

    loss = Objective("gvp").loss(model, x1, t=t, x0=x0)
    assert dtypes == [(torch.bfloat16, torch.float32)]
    assert loss.dtype == torch.float32
    exact = Objective("gvp").loss(model, x1.double(), t=t.double(), x0=x0.double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


def test_learnt_variance_is_the_second_half_of_the_channels() -> None:
    objective = Objective("gvp")
    x1 = torch.randn(2, 3, 4, 4, generator=seeded())
    t = torch.tensor([0.3, 0.6])

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.tanh(), torch.full_like(x, 1e6)], dim=1)

    x0 = torch.zeros_like(x1)
    plain = objective.loss(lambda x, t: x.tanh(), x1, t=t, x0=x0)
    assert torch.equal(objective.loss(model, x1, t=t, x0=x0), plain)
    assert torch.equal(objective.velocity(model)(x1, t), x1.tanh())
    with pytest.raises(ShapeError, match="model output"):
        objective.velocity(lambda x, t: x[:, :1])(x1, t)


def test_uniform_and_logit_normal_times() -> None:
    interval = TimeInterval(0.1, 0.9)
    t = UniformTime().sample(20_000, interval, generator=seeded())
    assert t.min() >= 0.1
    assert t.max() <= 0.9
    torch.testing.assert_close(t.mean(), torch.tensor(0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(t.std(), torch.tensor(0.8 / 12**0.5), atol=0.01, rtol=0)
    t = LogitNormalTime(mean=0.3, std=0.8).sample(20_000, interval, generator=seeded(), dtype=torch.float64)
    logits = torch.logit((t - 0.1) / 0.8)
    torch.testing.assert_close(logits.mean().item(), 0.3, atol=0.02, rtol=0)
    torch.testing.assert_close(logits.std().item(), 0.8, atol=0.02, rtol=0)


def test_margins() -> None:
    assert Objective("gvp").sample_interval == (0.0, 1.0)
    assert Objective("vp").sample_interval == (0.0, 1 - 1e-3)
    assert Objective("vp", "noise").train_interval == (0.0, 1 - 1e-5)
    assert Objective("linear", "score").train_interval == (1e-3, 1 - 1e-3)
    assert Objective("linear", "score", sample_margin=0.02).sample_interval == (0.02, 0.98)


def test_misspelt_names() -> None:
    with pytest.raises(ConfigError, match=r"'velocity', 'score', 'noise', got 'velocty'; did you mean 'velocity'"):
        Objective("gvp", "velocty")
    with pytest.raises(ConfigError, match=r"weighting.*did you mean 'likelihood'"):
        Objective("gvp", weighting="likelyhood")
    with pytest.raises(ConfigError, match=r"time sampling.*did you mean 'logit_normal'"):
        get_time_sampling("lognormal")
    with pytest.raises(ConfigError, match="train_margin"):
        Objective("gvp", train_margin=0.7)
    with pytest.raises(ConfigError, match="std"):
        LogitNormalTime(std=0.0)
