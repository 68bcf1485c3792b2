from __future__ import annotations

import math

import pytest
import torch

from wavemamba import ConfigError
from wavemamba.diffusion import Objective, bits_per_dim, get_path, log_likelihood
from wavemamba.diffusion.paths import broadcast_time

MEAN = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3, 0.0], [0.3, 0.4, 0.1], [0.0, 0.1, 0.2]], dtype=torch.float64)


def density(path) -> tuple:
    """Velocity of correlated Gaussian data, whose Jacobian is not diagonal, and the data's distribution."""

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = broadcast_time(t, x)
        a, s, da, ds = (f(time)[..., None] for f in (path.alpha, path.sigma, path.alpha_rate, path.sigma_rate))
        one = torch.eye(3, dtype=torch.float64)
        matrix = (a * da * COVARIANCE + s * ds * one) @ torch.linalg.inv(a**2 * COVARIANCE + s**2 * one)
        return da[..., 0] * MEAN + (matrix @ (x - a[..., 0] * MEAN)[..., None])[..., 0]

    return velocity, torch.distributions.MultivariateNormal(MEAN, COVARIANCE)


@pytest.mark.parametrize(("solver", "control"), [("dopri5", "batch"), ("dopri5", "sample"), ("rk4", "batch")])
def test_diagonal_gaussian_is_exact_with_one_probe(solver: str, control: str, gaussian) -> None:
    """The square of a sign is one: on a diagonal Jacobian Hutchinson's estimate has no error."""
    data = gaussian(get_path("gvp"))
    x = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = log_likelihood(
        data.velocity, x, Objective("gvp"), solver=solver, step_control=control, steps=100, atol=1e-8, rtol=1e-8
    )
    exact = torch.distributions.Normal(data.mean, data.std).log_prob(x).sum((1, 2))
    torch.testing.assert_close(result.log_prob, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.bits_per_dim, -exact / (6 * math.log(2)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.latent, (x - data.mean) / data.std, rtol=1e-5, atol=1e-5)
    assert result.info.nfe > 0


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_correlated_gaussian_within_the_error_of_the_estimate(path: str) -> None:
    velocity, exact = density(get_path(path))
    x = exact.sample((1,)).expand(128, 3).clone()
    # Margins close to zero: VP's flow ends a little before the data.
    objective = Objective(path, sample_margin=1e-6)
    result = log_likelihood(velocity, x, objective, solver="rk4", steps=80, generator=0)
    error = result.log_prob - exact.log_prob(x[0])
    spread = error.std() / math.sqrt(len(x))
    # VP keeps alpha(0) = exp(-5.025) of the data in what is taken for pure noise.
    assert abs(error.mean()) < 5 * spread + (0.02 if path == "vp" else 1e-3)


def test_probes_narrow_the_estimate() -> None:
    velocity, exact = density(get_path("gvp"))
    x = exact.mean.expand(200, 3).clone()
    spreads = [
        log_likelihood(velocity, x, Objective("gvp"), solver="rk4", steps=20, probes=n, generator=0).log_prob.std()
        for n in (1, 16)
    ]
    assert 2.5 < spreads[0] / spreads[1] < 6


def test_score_and_noise_predictions(gaussian) -> None:
    data = gaussian(get_path("gvp"))
    x = torch.linspace(-0.5, 1.5, 5, dtype=torch.float64)[:, None]
    exact = torch.distributions.Normal(data.mean, data.std).log_prob(x)[:, 0]
    for prediction in ("score", "noise"):
        result = log_likelihood(getattr(data, prediction), x, Objective("gvp", prediction), atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(result.log_prob, exact, rtol=5e-3, atol=5e-3)


def test_probes_come_from_their_streams_and_the_batch_does_not_matter() -> None:
    velocity, exact = density(get_path("gvp"))
    x = exact.sample((3,))
    objective = Objective("gvp")
    together = log_likelihood(velocity, x, objective, step_control="sample", generator=[4, 5, 6]).log_prob
    alone = log_likelihood(velocity, x[1:2], objective, step_control="sample", generator=[5]).log_prob
    torch.testing.assert_close(alone, together[1:2], rtol=1e-10, atol=1e-10)


def test_one_generator_deals_the_probes_of_any_batch() -> None:
    velocity, exact = density(get_path("gvp"))
    x = exact.sample((3,))

    def estimate(count: int) -> torch.Tensor:
        source = torch.Generator().manual_seed(3)
        return log_likelihood(velocity, x[:count], Objective("gvp"), solver="rk4", steps=10, generator=source).log_prob

    assert torch.equal(estimate(3), estimate(3))
    torch.testing.assert_close(estimate(2), estimate(3)[:2], rtol=1e-10, atol=1e-10)


def test_bits_per_dimension_are_the_entropy_of_the_data(gaussian) -> None:
    """Averaged over the data, `-log p` is the entropy `ln(std sqrt(2 pi e))` a dimension."""
    data = gaussian(get_path("gvp"))
    normal = torch.linspace(0.5 / 512, 1 - 0.5 / 512, 512, dtype=torch.float64)
    x = data.mean + data.std * torch.distributions.Normal(0.0, 1.0).icdf(normal)[:, None]
    found = log_likelihood(data.velocity, x, Objective("gvp"), solver="rk4", steps=50, bin_width=2 / 256, generator=0)
    entropy = math.log2(data.std * math.sqrt(2 * math.pi * math.e))
    assert found.bits_per_dim.mean().item() == pytest.approx(entropy - math.log2(2 / 256), rel=1e-3)


def test_parameters_get_no_gradient_and_progress_has_the_data_shape() -> None:
    weight = torch.full((1,), -0.5, requires_grad=True)
    shapes = []
    result = log_likelihood(
        lambda x, t: weight * x,
        torch.ones(2, 1, 4),
        Objective("gvp"),
        solver="euler",
        steps=5,
        callback=lambda progress: shapes.append(progress.x.shape),
    )
    assert weight.grad is None
    assert not result.log_prob.requires_grad
    assert shapes == [(2, 1, 4)] * 5


def test_bits_of_a_uniform_density() -> None:
    """Uniform on [-1, 1] in 256 bins is eight bits a dimension."""
    log_prob = torch.tensor(-12 * math.log(2.0))
    torch.testing.assert_close(bits_per_dim(log_prob, 12, bin_width=2 / 256).item(), 8.0)
    torch.testing.assert_close(bits_per_dim(log_prob, 12).item(), 1.0)


def test_probes_are_checked() -> None:
    with pytest.raises(ConfigError, match="probes"):
        log_likelihood(lambda x, t: x, torch.zeros(1, 1), Objective("gvp"), probes=0)
