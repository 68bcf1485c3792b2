from __future__ import annotations

import pytest
import torch

from wavemamba import ConfigError, ShapeError
from wavemamba.diffusion import PATHS, Objective, VPPath, get_path

TIMES = torch.tensor([0.02, 0.3, 0.5, 0.77, 0.98], dtype=torch.float64)


@pytest.mark.parametrize("name", list(PATHS))
def test_rates_are_derivatives(name: str) -> None:
    path = get_path(name)
    t = TIMES.clone().requires_grad_()
    for value, rate in ((path.alpha, path.alpha_rate), (path.sigma, path.sigma_rate)):
        (expected,) = torch.autograd.grad(value(t).sum(), t)
        torch.testing.assert_close(rate(TIMES), expected, rtol=1e-12, atol=1e-12)
    (log_rate,) = torch.autograd.grad(path.alpha(t).log().sum(), t)
    torch.testing.assert_close(path.log_alpha_rate(TIMES), log_rate, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(PATHS))
def test_wronskian_and_score_gain(name: str) -> None:
    path = get_path(name)
    a, s, da, ds = path.alpha(TIMES), path.sigma(TIMES), path.alpha_rate(TIMES), path.sigma_rate(TIMES)
    torch.testing.assert_close(path.wronskian(TIMES), da * s - a * ds, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(path.score_gain(TIMES), da / a * s**2 - s * ds, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(PATHS))
def test_ends_are_noise_and_data(name: str) -> None:
    path = get_path(name)
    x0, x1 = torch.randn(2, 3, 4, 4, dtype=torch.float64).unbind(0)
    start, _ = path.interpolate(x0, x1, torch.zeros(3, dtype=torch.float64))
    end, _ = path.interpolate(x0, x1, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(end, x1)
    # VP keeps exp(-5.025) of the data at its noise end.
    torch.testing.assert_close(start, x0, rtol=0, atol=0.03 if name == "vp" else 1e-12)


@pytest.mark.parametrize("prediction", ["velocity", "score", "noise"])
@pytest.mark.parametrize("name", list(PATHS))
def test_conversions_on_gaussian_data(name: str, prediction: str, gaussian) -> None:
    data = gaussian(get_path(name))
    objective = Objective(data.path, prediction)
    x = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = getattr(data, prediction)
    torch.testing.assert_close(objective.velocity(model)(x, TIMES), data.velocity(x, TIMES), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(objective.score(model)(x, TIMES), data.score(x, TIMES), rtol=1e-9, atol=1e-9)


def test_vp_sigma_keeps_its_digits_near_the_data() -> None:
    t = torch.tensor([0.9999], dtype=torch.float32)
    exact = VPPath().sigma(t.double())
    torch.testing.assert_close(VPPath().sigma(t).double(), exact, rtol=1e-5, atol=0)


def test_misspelt_names_list_choices_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'linear', 'gvp', 'vp', got 'liner'; did you mean 'linear'"):
        get_path("liner")
    with pytest.raises(ConfigError, match=r"beta_mx.*beta_min"):
        get_path("vp", beta_mx=10.0)
    with pytest.raises(ConfigError, match="beta_min"):
        get_path("vp", beta_min=3.0, beta_max=1.0)


def test_shapes_are_checked() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ShapeError, match="one time per sample"):
        get_path("gvp").interpolate(x, x, torch.tensor(0.5))
    with pytest.raises(ShapeError, match="x0"):
        get_path("gvp").interpolate(x[:1], x, torch.zeros(2))
