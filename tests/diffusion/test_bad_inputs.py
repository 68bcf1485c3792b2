"""States, numbers, options and outputs that do not fit are named, before the first evaluation where they can be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from wavemamba import ConfigError, ShapeError, SolverError
from wavemamba.diffusion import (
    ODE_SOLVERS,
    ClassifierFreeGuidance,
    Objective,
    get_path,
    get_time_sampling,
    integrate,
    log_likelihood,
    sample_noise,
    sample_ode,
    sample_sde,
)

LINEAR = Objective("linear")
EVERY = [(name, ODE_SOLVERS.find(name).controls[-1]) for name in ODE_SOLVERS]

SAMPLERS = {
    "ode": lambda x, **options: sample_ode(lambda x, t: 0.5 * x, x, LINEAR, **options),
    "sde": lambda x, **options: sample_sde(lambda x, t: 0.5 * x, x, LINEAR, **options),
    "likelihood": lambda x, **options: log_likelihood(lambda x, t: 0.5 * x, x, LINEAR, **options),
    "loss": lambda x, **options: LINEAR.loss(lambda x, t: 0.5 * x, x, **options),
}
BAD_STATES = {
    "integers": torch.ones(2, 3, dtype=torch.int64),
    "bytes": torch.ones(2, 3, dtype=torch.uint8),
    "booleans": torch.ones(2, 3, dtype=torch.bool),
    "complex": torch.ones(2, 3, dtype=torch.complex64),
    "a list": [[1.0, 2.0]],
    "an array": np.ones((2, 3)),
    "8 bits": torch.ones(2, 3).to(torch.float8_e4m3fn),
    "sparse": torch.eye(3).to_sparse(),
    "rank 0": torch.tensor(1.0),
    "None": None,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", BAD_STATES)
def test_a_state_of_another_kind_is_refused_at_the_start(sampler, kind):
    with pytest.raises(ShapeError, match=r"(noise|x1): expected"):
        SAMPLERS[sampler](BAD_STATES[kind])


@pytest.mark.parametrize("sampler", ["ode", "sde", "likelihood"])
def test_noise_that_is_not_finite_is_refused_at_the_start(sampler):
    with pytest.raises(SolverError, match="the start"):
        SAMPLERS[sampler](torch.full((2, 3), math.nan))


BAD_NUMBERS = [
    *(("ode", {name: value}) for name in ("atol", "rtol") for value in (-1.0, math.nan, math.inf, "1", None)),
    *(("ode", {"steps": value, "solver": "euler"}) for value in (2.5, 0, -1, "5", True, None)),
    *(("ode", {"max_evaluations": value}) for value in (0, 1.5, math.inf)),
    ("ode", {"atol": 0.0, "rtol": 0.0}),
    *(("sde", {"diffusion_norm": value}) for value in (-1.0, math.nan, math.inf, "1")),
    *(("sde", {"last_step_size": value}) for value in (0.0, 1.0, math.nan, "1")),
    *(("sde", {"steps": value}) for value in (2.5, 1, math.nan)),
    *(("likelihood", {"bin_width": value}) for value in (0, -1.0, math.nan, math.inf)),
    *(("likelihood", {"probes": value}) for value in (0, 1.5)),
    *((sampler, {"generator": value}) for sampler in ("sde", "likelihood", "loss") for value in (1.5, "3")),
    *((sampler, {"slover": "euler"}) for sampler in SAMPLERS),
]


@pytest.mark.parametrize(("sampler", "options"), BAD_NUMBERS, ids=str)
def test_a_bad_number_or_option_is_refused_before_the_first_evaluation(sampler, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        SAMPLERS[sampler](torch.ones(2, 3), **options)


@pytest.mark.parametrize(("solver", "control"), EVERY)
def test_a_field_that_is_not_finite_is_told(solver, control):
    with pytest.raises(SolverError, match="finite"):
        sample_ode(lambda x, t: x / 0, torch.ones(2, 1), LINEAR, solver=solver, step_control=control, steps=3)


OUTPUTS = [
    *(None, (torch.ones(2, 3),), torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 4)),
    *(torch.ones(2, 3).to_sparse(), torch.ones(2, 3, device="meta")),
]


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: getattr(output, "shape", output))
@pytest.mark.parametrize("sampler", ["ode", "sde", "likelihood", "loss"])
def test_a_model_that_returns_something_else_is_told(sampler, output):
    calls = {
        "ode": lambda model: sample_ode(model, torch.ones(2, 3), LINEAR),
        "sde": lambda model: sample_sde(model, torch.ones(2, 3), LINEAR),
        "likelihood": lambda model: log_likelihood(model, torch.ones(2, 3), LINEAR),
        "loss": lambda model: LINEAR.loss(model, torch.ones(2, 3)),
    }
    with pytest.raises(ShapeError, match="model output"):
        calls[sampler](lambda x, t: output)


@pytest.mark.parametrize(("solver", "control"), EVERY)
def test_a_batch_of_nothing_gives_nothing(solver, control):
    noise = torch.empty(0, 2, 3)
    assert sample_ode(lambda x, t: x, noise, LINEAR, solver=solver, step_control=control).shape == noise.shape


def test_a_batch_of_nothing_elsewhere():
    noise = torch.empty(0, 2, 3)
    assert sample_sde(lambda x, t: x, noise, LINEAR, generator=[]).shape == noise.shape
    assert log_likelihood(lambda x, t: x, noise, LINEAR).log_prob.shape == (0,)
    assert LINEAR.loss(lambda x, t: x, noise).shape == (0,)


@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5", "bosh3", "scipy_solver", "explicit_adams"])
def test_a_vector_of_samples_is_a_batch(solver):
    x = sample_ode(lambda x, t: 0.5 * x, torch.ones(3), LINEAR, solver=solver, steps=100)
    torch.testing.assert_close(x, torch.full((3,), math.exp(0.5)), rtol=1e-2, atol=0)


@pytest.mark.parametrize("seed", [np.int64(3), torch.tensor(3), np.array([3, 4]), range(3, 5), (3, 4)])
def test_seeds_of_every_kind_of_integer(seed):
    drawn = sample_noise((2, 3), generator=seed)
    plain = [3, 4] if np.ndim(seed) or isinstance(seed, range) else 3
    assert torch.equal(drawn, sample_noise((2, 3), generator=plain))


def test_likelihood_in_inference_mode_with_labels():
    table = nn.Embedding(3, 2)

    def model(x, t, y):
        return x * table(y).sum(1, keepdim=True)

    y = torch.tensor([0, 2])
    outside = log_likelihood(model, torch.ones(2, 3), LINEAR, solver="heun", steps=3, y=y, generator=0)
    with torch.inference_mode():
        x1, labels = torch.ones(2, 3), torch.tensor([0, 2])
        inside = log_likelihood(model, x1, LINEAR, solver="heun", steps=3, y=labels, generator=0)
        torch.testing.assert_close(inside.log_prob, outside.log_prob)
    assert len(repr(outside)) < 200


def test_a_velocity_that_does_not_depend_on_the_state():
    rate = torch.ones(3, requires_grad=True)
    found = log_likelihood(lambda x, t: rate.expand_as(x), torch.zeros(2, 3), LINEAR, solver="euler", steps=2)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(-1.0)) * 3
    torch.testing.assert_close(found.log_prob, exact.expand(2))
    with pytest.raises(ConfigError, match="differentiated"):
        log_likelihood(torch.no_grad()(lambda x, t: 2 * x), torch.zeros(2, 3), LINEAR)


def test_conditions_are_explicit_and_a_misspelt_one_is_told():
    def model(x, t, mask):
        return x * mask

    mask = torch.ones(2, 1)
    assert sample_ode(model, torch.ones(2, 3), LINEAR, conditions={"mask": mask}).shape == (2, 3)
    for call in (
        lambda **named: sample_ode(model, torch.ones(2, 3), LINEAR, **named),
        lambda **named: sample_sde(model, torch.ones(2, 3), LINEAR, **named),
        lambda **named: log_likelihood(model, torch.ones(2, 3), LINEAR, **named),
        lambda **named: LINEAR.loss(model, torch.ones(2, 3), **named),
        lambda **named: LINEAR.velocity(model)(torch.ones(2, 3), torch.ones(2), **named),
        lambda **named: LINEAR.score(model)(torch.ones(2, 3), torch.zeros(2), **named),
    ):
        with pytest.raises(ConfigError, match="did you mean mask"):
            call(conditions={"maks": mask})
        with pytest.raises(ConfigError, match=r"conditions=\{'mask': \.\.\.\}"):
            call(mask=mask)
        with pytest.raises(ConfigError, match="labels go into y="):
            call(conditions={"y": mask})


def test_guidance_takes_conditions_both_ways():
    seen = []

    def model(x, t, y, mask):
        seen.append(mask)
        return x + y[:, None] * mask

    guided = ClassifierFreeGuidance(model, 2.0, null_class=3)
    x, t, y, mask = torch.ones(2, 3), torch.zeros(2), torch.tensor([0, 1]), torch.ones(2, 1)
    once = guided(x, t, y, conditions={"mask": mask})
    assert torch.equal(once, guided(x, t, y, mask=mask))
    assert [m.shape for m in seen] == [(4, 1)] * 2
    with pytest.raises(ConfigError, match="did you mean mask"):
        guided(x, t, y, maks=mask)
    sample_ode(guided, x, LINEAR, solver="euler", steps=1, y=y, conditions={"mask": mask})
    assert seen[-1].shape == (4, 1)


def half(x, t, y=None):
    return 0.5 * x


X = torch.ones(2, 3)
MISUSES = {
    "objective": lambda: sample_ode(half, X, "linear"),
    "objective of an sde": lambda: sample_sde(half, X, None),
    "model": lambda: sample_ode("model", X, LINEAR),
    "callback": lambda: sample_ode(half, X, LINEAR, callback=3),
    "options": lambda: sample_ode(half, X, LINEAR, options=[1]),
    "a misspelt option of torchdiffeq": lambda: sample_ode(half, X, LINEAR, options={"frist_step": 0.1}),
    "sparse": lambda: sample_ode(half, X.to_sparse(), LINEAR),
    "t": lambda: LINEAR.loss(half, X, t=torch.ones(3)),
    "t as a list": lambda: LINEAR.path.interpolate(X, X, [0.1, 0.2]),
    "x0": lambda: LINEAR.loss(half, X, x0=np.ones((2, 3))),
    "y": lambda: LINEAR.loss(half, X, y=[1, 2]),
    "conditions": lambda: LINEAR.loss(half, X, conditions=[1]),
    "negative shape": lambda: sample_noise((2, -3)),
    "a number as shape": lambda: sample_noise(3),
    "integer noise": lambda: sample_noise((2, 3), dtype=torch.int64),
    "one seed": lambda: sample_noise((2, 3), seeds=3),
    "samples of nothing": lambda: log_likelihood(half, torch.ones(2, 0), LINEAR),
    "a seed of 70 bits": lambda: sample_noise((2, 3), generator=2**70),
    "values of torchdiffeq's options": lambda: sample_ode(half, X, LINEAR, options={"first_step": "a"}),
    "values of SciPy's options": lambda: sample_ode(half, X, LINEAR, solver="scipy_solver", options={"max_step": -1.0}),
    "half a seed": lambda: sample_noise((2, 3), seeds=[1.5, 2]),
    "interval": lambda: ClassifierFreeGuidance(half, 1.5, null_class=3, interval=3),
    "words as interval": lambda: ClassifierFreeGuidance(half, 1.5, null_class=3, interval=("a", "b")),
    "labels as a list": lambda: ClassifierFreeGuidance(half, 1.5, null_class=3)(X, torch.ones(2), [1, 2]),
    "guided None": lambda: ClassifierFreeGuidance(lambda x, t, y: None, 1.5, null_class=3)(
        X, torch.ones(2), torch.tensor([1, 2])
    ),
    "beta": lambda: get_path("vp", beta_min="a"),
    "end": lambda: integrate(lambda t, x: x, X, 0.0, math.nan),
    "field": lambda: integrate(lambda t, x: None, X, 0.0, 1.0),
    "count": lambda: get_time_sampling("uniform").sample(2.5),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_a_misuse_is_named(misuse):
    with pytest.raises((ConfigError, ShapeError), match=r"expected|unknown"):
        MISUSES[misuse]()
