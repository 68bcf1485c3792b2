"""Global defaults of torch, and autocast, change neither where a sample is nor what it is."""

from __future__ import annotations

import contextlib

import pytest
import torch

from wavemamba.diffusion import (
    ODE_SOLVERS,
    Objective,
    get_time_sampling,
    log_likelihood,
    sample_noise,
    sample_ode,
    sample_sde,
)

GVP = Objective("gvp")


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS = {
    "meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def model(x, t):
    return torch.sin(x) * t.view(-1, 1)


def seeded():
    return torch.Generator("cpu").manual_seed(1)


def likelihood(**options):
    return log_likelihood(model, NOISE, GVP, generator=0, **options)


NOISE = sample_noise((2, 3), seeds=[0, 1])
TIMES = torch.tensor([0.1, 0.6])
WORK = {
    "noise": lambda: sample_noise((2, 3), seeds=[0, 1]),
    "noise of one generator": lambda: sample_noise((2, 3), generator=seeded()),
    "no noise": lambda: sample_noise((0, 3), seeds=[]),
    "uniform times": lambda: get_time_sampling("uniform").sample(4, generator=seeded()),
    "logit-normal times": lambda: get_time_sampling("logit_normal").sample(4, generator=seeded()),
    "loss": lambda: GVP.loss(model, NOISE, generator=seeded()),
    "score": lambda: GVP.score(model)(NOISE, TIMES),
    "likelihood": lambda: likelihood(solver="dopri5").log_prob,
    "sde": lambda: sample_sde(model, NOISE, GVP, steps=4, generator=0),
    "heun sde": lambda: sample_sde(model, NOISE, GVP, solver="heun", steps=4, generator=[0, 1]),
    **{
        f"{name} {control}": lambda name=name, control=control: sample_ode(
            model, NOISE, GVP, solver=name, steps=6, step_control=control, atol=1e-4, rtol=1e-4
        )
        for name in ODE_SOLVERS
        for control in ODE_SOLVERS.find(name).controls
    },
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("work", WORK)
def test_the_same_numbers_in_the_same_place(work, surroundings):
    plain = WORK[work]()
    with SURROUNDINGS[surroundings]():
        found = WORK[work]()
    assert (found.device, found.dtype) == (plain.device, plain.dtype)
    assert torch.equal(found, plain)
