"""Faults that users of torchdiffeq, diffusers, SiT and flow_matching reported, tried here."""

from __future__ import annotations

import math

import pytest
import torch

from wavemamba import ShapeError, SolverError
from wavemamba.diffusion import ODE_SOLVERS, Objective, integrate, log_likelihood, sample_noise, sample_ode, sample_sde

FIXED = [name for name in ODE_SOLVERS if not ODE_SOLVERS.find(name).adaptive]


@pytest.mark.parametrize("solver", FIXED)
@pytest.mark.parametrize("end", [5.9, 0.1, -0.7])
def test_a_grid_in_single_precision_ends_where_it_was_asked_to(solver, end):
    """A grid made by adding steps stopped just before the end (torchdiffeq 138)."""
    times = []
    x, _ = integrate(
        lambda t, x: torch.ones_like(x),
        torch.zeros(1, 1),
        0.0,
        end,
        solver=solver,
        steps=59,
        callback=lambda at: times.append(at.time),
    )
    assert times[-1] == end
    assert x.item() == pytest.approx(end, rel=1e-5)


@pytest.mark.parametrize("control", ["batch", "sample"])
def test_a_solution_that_runs_to_infinity_is_named(control):
    """`underflow in dt` said neither what it was nor what to do (torchdiffeq 27, 57, 244)."""
    with pytest.raises(SolverError, match="fixed-step solver"):
        integrate(lambda t, x: x**2, torch.full((1, 1), 2.0), 0.0, 1.0, step_control=control)


def test_the_smallest_step_that_a_user_allows_is_kept():
    """The way out that torchdiffeq 244 recommends."""
    rough = {"options": {"min_step": 0.05}, "atol": 1e-12, "rtol": 1e-12}
    x, info = integrate(lambda t, x: torch.sign(torch.sin(40 * x)), torch.full((1, 1), 0.5), 0.0, 1.0, **rough)
    assert info.steps <= 20
    assert math.isfinite(x.item())


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_likelihood_goes_the_way_of_the_sample_back(solver):
    """flow_matching 28: a model whose slope is 0 at the start, from a start at 0 and elsewhere."""

    def model(x, t):
        return x * 3 * t.view(-1, 1) ** 2

    noise = torch.cat([torch.zeros(1, 2), sample_noise((2, 2), seeds=[0, 1])]).double()
    options = {"solver": solver, "steps": 200, "atol": 1e-9, "rtol": 1e-9}
    data = sample_ode(model, noise, Objective("linear"), **options)
    torch.testing.assert_close(data, noise * math.e, rtol=1e-6, atol=1e-6)
    found = log_likelihood(model, data, Objective("linear"), **options)
    torch.testing.assert_close(found.latent, noise, rtol=1e-6, atol=1e-6)
    exact = torch.distributions.Normal(0.0, math.e).log_prob(data).sum(1)
    torch.testing.assert_close(found.log_prob, exact, rtol=1e-6, atol=1e-6)


def test_each_picture_of_a_seeded_batch_can_be_drawn_again_without_the_batch():
    """diffusers 612, 3158, 6222, 6233: only the first picture of a batch could be."""

    def draw(seeds):
        noise = sample_noise((len(seeds), 2, 4), seeds=seeds)
        return sample_sde(lambda x, t: torch.sin(x), noise, Objective("gvp"), steps=5, generator=seeds)

    batch = draw([3, 1, 4])
    for row, seed in enumerate([3, 1, 4]):
        torch.testing.assert_close(draw([seed]), batch[row : row + 1])
    with pytest.raises(ShapeError, match=r"one per sample \(3\)"):
        sample_noise((3, 2), generator=[torch.Generator("cpu"), torch.Generator("cpu")])
