from __future__ import annotations

import itertools
import math

import pytest
import torch

from wavemamba import ConfigError, ShapeError
from wavemamba.diffusion import DIFFUSIONS, SDE_SOLVERS, Objective, get_path, sample_noise, sample_ode, sample_sde

COUNT = 6_000


def start(batch: int = COUNT) -> torch.Tensor:
    return torch.randn(batch, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def draw(data, objective: Objective, **options) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return sample_sde(getattr(data, objective.prediction), start(), objective, **options)


def has_moments(sample: torch.Tensor, mean: float, variance: float) -> None:
    # Five standard errors of the estimates, and a hundredth for the steps.
    assert abs(sample.mean() - mean) < 5 * math.sqrt(variance / len(sample)) + 0.01 * math.sqrt(variance)
    assert abs(sample.var() / variance - 1) < 5 * math.sqrt(2 / len(sample)) + 0.01


@pytest.mark.parametrize("form", DIFFUSIONS)
@pytest.mark.parametrize(("path", "solver"), [("linear", "euler_maruyama"), ("gvp", "heun")])
def test_marginals_are_kept_whatever_the_diffusion(path: str, solver: str, form: str, gaussian) -> None:
    data = gaussian(get_path(path))
    sample = draw(data, Objective(path), solver=solver, diffusion=form, last_step=None, steps=250)
    has_moments(sample, data.mean, data.std**2)


@pytest.mark.parametrize("form", ["SBDM", "sigma", "increasing-decreasing"])
def test_marginals_on_vp(form: str, gaussian) -> None:
    data = gaussian(get_path("vp"))
    has_moments(draw(data, Objective("vp"), solver="heun", diffusion=form, last_step=None, steps=250), data.mean, 0.16)


@pytest.mark.parametrize("prediction", ["score", "noise"])
def test_other_predictions(prediction: str, gaussian) -> None:
    data = gaussian(get_path("gvp"))
    sample = draw(data, Objective("gvp", prediction), diffusion="sigma", steps=250)
    has_moments(sample, data.mean, data.std**2)


def test_norm_scales_the_noise(gaussian) -> None:
    """A sampler that ignored its noise would keep each sample where the flow takes it."""
    data = gaussian(get_path("gvp"))
    flow = data.flow(start(), 0.0, 1.0)
    correlations = [
        torch.corrcoef(torch.cat([draw(data, Objective("gvp"), diffusion_norm=norm, steps=200), flow], dim=1).T)[0, 1]
        for norm in (0.01, 0.3, 3.0)
    ]
    assert correlations[0] > 0.95 > correlations[1] > correlations[2]


def test_last_steps(gaussian) -> None:
    data = gaussian(get_path("linear"))
    objective, h = Objective("linear"), 0.2
    time = torch.tensor([1 - h], dtype=torch.float64)
    mean, variance = data.moments(time)
    options = {"diffusion": "constant", "diffusion_norm": 0.3, "steps": 250, "last_step_size": h}
    slope = (time * data.std**2 - (1 - time)) / variance
    gains = {
        "euler": 1 + h * slope,
        "mean": 1 + h * (slope - 0.3 / variance),
        "tweedie": time * data.std**2 / variance,
    }
    for last, gain in gains.items():
        sample = draw(data, objective, last_step=last, **options)
        arrives = data.mean if last == "tweedie" else mean + h * data.mean
        has_moments(sample, float(arrives), float(gain**2 * variance))


@pytest.mark.parametrize(("solver", "order"), [("euler_maruyama", 1), ("heun", 2)])
def test_weak_order(solver: str, order: int, gaussian) -> None:
    """On Gaussian data a step is linear in state and noise, so the variance it leads to is known without sampling."""
    data = gaussian(get_path("gvp"))
    step = SDE_SOLVERS.find(solver).step
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def diffusion(t: float) -> torch.Tensor:
        return torch.full((1,), math.sin(math.pi * t) ** 2, dtype=torch.float64)

    def drift(x: torch.Tensor, t: float) -> torch.Tensor:
        times = torch.full((1,), t, dtype=torch.float64)
        return data.velocity(x, times) + diffusion(t) * data.score(x, times)

    errors = []
    for steps in (40, 80):
        times = [0.1 + 0.8 * i / steps for i in range(steps + 1)]
        _, variance = data.moments(torch.tensor([0.1], dtype=torch.float64))
        for now, after in itertools.pairwise(times):
            origin = step(drift, diffusion, zero, now, after, zero)
            gain = step(drift, diffusion, one, now, after, zero) - origin
            spread = step(drift, diffusion, zero, now, after, one) - origin
            variance = gain**2 * variance + spread**2
        errors.append((variance - data.moments(torch.tensor([0.9], dtype=torch.float64))[1]).abs())
    measured = math.log2(errors[0] / errors[1])
    assert abs(measured - order) < 0.25, f"order {measured:.2f}, errors {errors}"


@pytest.mark.parametrize("solver", list(SDE_SOLVERS))
def test_without_noise_it_is_the_flow(solver: str, gaussian) -> None:
    data = gaussian(get_path("gvp"))
    options = {"solver": solver, "diffusion": "none", "steps": 201, "last_step": "euler", "last_step_size": 0.005}
    sample = sample_sde(data.velocity, start(8), Objective("gvp"), **options)
    ode_solver = "euler" if solver == "euler_maruyama" else "heun"
    expected = sample_ode(data.velocity, start(8), Objective("gvp"), solver=ode_solver, steps=200)
    torch.testing.assert_close(sample, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("solver", list(SDE_SOLVERS))
def test_a_sample_does_not_depend_on_its_batch(solver: str) -> None:
    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.sin(y.view(-1, 1, 1) * x) + t.view(-1, 1, 1)

    def sample(seeds: list[int]) -> torch.Tensor:
        noise = sample_noise((len(seeds), 2, 3), seeds=seeds, dtype=torch.float64)
        y = torch.tensor(seeds, dtype=torch.float64)
        return sample_sde(model, noise, Objective("gvp"), solver=solver, steps=12, generator=seeds, y=y)

    together = sample([7, 1, 40, 3])
    torch.testing.assert_close(sample([40]), together[2:3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sample([3, 7]), together[[3, 0]], rtol=1e-12, atol=1e-12)
    with pytest.raises(ShapeError, match="one per sample"):
        sample_sde(model, torch.zeros(3, 2, 3), Objective("gvp"), generator=[1, 2])


@pytest.mark.parametrize("solver", list(SDE_SOLVERS))
def test_one_generator_makes_a_sample_reproducible_in_any_batch(solver: str) -> None:
    """Noise and increments from one generator each: the k-th sample is the same however many follow it."""

    def sample(count: int, seed: int = 3) -> torch.Tensor:
        noise = sample_noise((count, 2, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        source = torch.Generator().manual_seed(seed)
        return sample_sde(lambda x, t: -x, noise, Objective("gvp"), solver=solver, steps=8, generator=source)

    whole = sample(5)
    assert torch.equal(sample(5), whole)
    torch.testing.assert_close(sample(2), whole[:2], rtol=1e-12, atol=1e-12)
    assert not torch.equal(sample(5, seed=4), whole)


@pytest.mark.parametrize(
    ("solver", "last", "calls"), [("euler_maruyama", "mean", 10), ("euler_maruyama", None, 10), ("heun", "tweedie", 19)]
)
def test_steps_evaluations_and_progress_are_reported(solver: str, last: str | None, calls: int) -> None:
    seen, reports = [], []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return -x

    sample, info = sample_sde(
        model,
        start(3),
        Objective("linear"),
        solver=solver,
        steps=10,
        last_step=last,
        callback=reports.append,
        return_info=True,
    )
    assert (info.steps, info.nfe, len(seen)) == (10, calls, calls)
    assert [(r.step, r.total) for r in reports] == [(i, 10) for i in range(1, 11)]
    assert torch.equal(reports[-1].x, sample)
    assert reports[-1].time == info.end
    assert info.end == (1.0 if last else 1 - 1e-3)


def test_low_precision_models_are_integrated_in_float32() -> None:
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.bfloat16
        return -x

    sample = sample_sde(model, start(2).bfloat16(), Objective("gvp"), steps=4)
    assert sample.dtype == torch.float32


def test_names_and_numbers_are_checked() -> None:
    def sample(**options) -> None:
        sample_sde(lambda x, t: x, start(1), Objective("gvp"), **options)

    with pytest.raises(ConfigError, match=r"solver.*did you mean 'euler_maruyama'"):
        sample(solver="euler_maruyma")
    with pytest.raises(ConfigError, match=r"diffusion.*did you mean 'decreasing'"):
        sample(diffusion="decresing")
    with pytest.raises(ConfigError, match=r"last_step.*did you mean 'tweedie'"):
        sample(last_step="tweedy")
    for options in ({"steps": 1}, {"diffusion_norm": -1.0}, {"last_step_size": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            sample(**options)


@pytest.mark.cuda
@pytest.mark.parametrize("solver", list(SDE_SOLVERS))
def test_steps_never_wait_for_the_device(solver: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    noise = sample_noise((2, 1, 4), seeds=[0, 1], device="cuda")

    def watch(progress) -> None:
        # Before the first step and after the last one, the solver looks whether all is finite.
        torch.cuda.set_sync_debug_mode("error" if progress.step < progress.total else "default")

    try:
        sample_sde(lambda x, t: -x, noise, Objective("gvp"), solver=solver, steps=4, generator=[0, 1], callback=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
