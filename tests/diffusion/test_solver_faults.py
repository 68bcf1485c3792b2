"""What solvers do with wrappers, endless work, models that write, bad numbers and models that fail."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

from wavemamba import ConfigError, SolverError, create_model
from wavemamba.diffusion import (
    ODE_SOLVERS,
    SDE_SOLVERS,
    ClassifierFreeGuidance,
    Objective,
    integrate,
    log_likelihood,
    sample_noise,
    sample_ode,
    sample_sde,
)

LINEAR = Objective("linear")
ADAPTIVE = [(name, control) for name in ODE_SOLVERS if (s := ODE_SOLVERS.find(name)).adaptive for control in s.controls]
EVERY = [(name, ODE_SOLVERS.find(name).controls[-1]) for name in ODE_SOLVERS]


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Replica(nn.Module):
    """As DistributedDataParallel and FSDP hold a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


@pytest.fixture(scope="module")
def dimsum():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("dimsum_tiny", img_size=4, dim=32, depth=1, num_classes=3).eval()
        nn.init.normal_(model.head.linear.weight, std=0.5)
    return model


WRAPPERS = {
    "partial": lambda m: functools.partial(m),
    "lambda": lambda m: lambda x, t, y=None: m(x, t, y),
    "bound method": lambda m: m.forward,
    "module": Outer,
    "replica": Replica,
    "module in a replica": lambda m: Replica(Outer(m)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("guided", [False, True])
def test_a_wrapped_model_is_sampled_as_the_model(dimsum, wrapper, guided):
    def draw(model):
        if guided:
            model = ClassifierFreeGuidance(model, 2.0, null_class=3 if wrapper == "lambda" else None)
        noise = sample_noise((2, 4, 4, 4), seeds=[0, 1])
        return sample_ode(model, noise, LINEAR, y=torch.tensor([0, 2]), rtol=1e-1, atol=1e-1)

    torch.testing.assert_close(draw(WRAPPERS[wrapper](dimsum)), draw(dimsum), rtol=1e-4, atol=1e-5)


def test_the_null_class_of_a_compiled_model_is_found():
    class Network(nn.Module):
        null_class = 3

        def forward(self, x, t, y):
            return x * y.view(-1, 1)

    guided = ClassifierFreeGuidance(torch.compile(Outer(Network()), backend="eager"), 2.0)
    x = guided(torch.ones(2, 3), torch.zeros(2), torch.tensor([0, 1]))
    torch.testing.assert_close(x, torch.tensor([[-3.0], [-1.0]]).expand(2, 3))


def test_labels_bound_to_a_model_are_sampled(dimsum):
    noise, y = sample_noise((2, 4, 4, 4), seeds=[0, 1]), torch.tensor([0, 2])
    bound = sample_ode(functools.partial(dimsum, y=y), noise, LINEAR, solver="heun", steps=2)
    assert torch.equal(bound, sample_ode(dimsum, noise, LINEAR, solver="heun", steps=2, y=y))


@pytest.mark.parametrize(("solver", "control"), EVERY)
def test_no_time_outside_of_the_interval_unless_asked_for(solver, control):
    times = []

    def model(x, t):
        times.append(t)
        return torch.full_like(x, 1e-5)

    sample_ode(model, torch.ones(2, 3), LINEAR, solver=solver, step_control=control, steps=5)
    assert min(t.min() for t in times) >= 0
    assert max(t.max() for t in times) <= 1


def test_overshoot_is_refused_where_it_would_do_nothing():
    with pytest.raises(ConfigError, match="overshoot"):
        sample_ode(lambda x, t: x, torch.ones(1, 1), LINEAR, solver="euler", overshoot=True)


@pytest.mark.parametrize(("solver", "control"), ADAPTIVE)
@pytest.mark.parametrize("tolerances", [{}, {"atol": 0.0, "rtol": 1e-12}], ids=["usual", "atol 0"])
def test_an_endless_integration_ends_with_a_named_error(solver, control, tolerances):
    calls = 0

    def stiff(x, t):
        nonlocal calls
        calls += 1
        return 50 * torch.sign(torch.sin(1e5 * x))

    noise = sample_noise((2, 300), seeds=[0, 1], dtype=torch.float64)
    with pytest.raises(SolverError, match="raise atol and rtol"):
        sample_ode(stiff, noise, LINEAR, solver=solver, step_control=control, max_evaluations=20, **tolerances)
    assert calls <= 20


def test_the_bound_is_generous_and_a_state_of_zero_needs_no_absolute_tolerance():
    x0 = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    for control in ("sample",):
        x, _ = integrate(lambda t, x: -x, x0, 0.0, 1.0, step_control=control, atol=0.0, rtol=1e-8)
        torch.testing.assert_close(x, x0 * math.exp(-1), rtol=1e-6, atol=0)
    _, info = integrate(lambda t, x: -2000 * x, x0, 0.0, 1.0, solver="bosh3", rtol=1e-6)
    assert info.nfe > 1000


def in_place(x, t, y=None):
    t.mul_(0)
    if y is not None:
        y.fill_(0)
    return x.mul_(0.5)


@pytest.mark.parametrize(("solver", "control"), EVERY)
def test_a_model_that_works_in_place_changes_nothing_else(solver, control):
    noise, y = sample_noise((2, 3), seeds=[0, 1]), torch.tensor([1, 2])
    kept = noise.clone()
    drawn = sample_ode(in_place, noise, LINEAR, solver=solver, step_control=control, steps=4, y=y)
    clean = sample_ode(lambda x, t, y: 0.5 * x, noise, LINEAR, solver=solver, step_control=control, steps=4, y=y)
    assert torch.equal(noise, kept)
    assert y.tolist() == [1, 2]
    torch.testing.assert_close(drawn, clean)


@pytest.mark.parametrize("solver", list(SDE_SOLVERS))
def test_a_model_that_works_in_place_changes_nothing_else_in_an_sde(solver):
    noise = sample_noise((2, 3), seeds=[0, 1])
    kept = noise.clone()
    drawn = sample_sde(in_place, noise, LINEAR, solver=solver, steps=4, generator=0)
    clean = sample_sde(lambda x, t: 0.5 * x, noise, LINEAR, solver=solver, steps=4, generator=0)
    assert torch.equal(noise, kept)
    torch.testing.assert_close(drawn, clean)


def test_a_model_that_works_in_place_changes_neither_loss_nor_likelihood():
    x1, t = sample_noise((2, 3), seeds=[0, 1]), torch.tensor([0.2, 0.7])
    options = {"t": t, "x0": torch.ones(2, 3)}
    for objective in (LINEAR, Objective("gvp", "noise")):
        clean = objective.loss(lambda x, t: 0.5 * x, x1, **options)
        assert torch.equal(objective.loss(in_place, x1, **options), clean)
        found = log_likelihood(in_place, x1, objective, solver="heun", steps=2, generator=0)
        exact = log_likelihood(lambda x, t: 0.5 * x, x1, objective, solver="heun", steps=2, generator=0)
        assert torch.equal(found.log_prob, exact.log_prob)
    assert torch.equal(options["t"], torch.tensor([0.2, 0.7]))


@pytest.mark.parametrize("solver", ["heun", "rk4", "explicit_adams", "bosh3"])
def test_a_model_may_hand_out_the_same_memory_at_every_call(solver):
    memory = torch.empty(2, 3)

    def model(x, t):
        return torch.mul(x, t[:, None], out=memory)

    noise = sample_noise((2, 3), seeds=[0, 1])
    with torch.no_grad():
        drawn = sample_ode(model, noise, LINEAR, solver=solver, steps=4)
        clean = sample_ode(lambda x, t: x * t[:, None], noise, LINEAR, solver=solver, steps=4)
    torch.testing.assert_close(drawn, clean)


@pytest.mark.parametrize("error", [AssertionError, KeyError, ConfigError, KeyboardInterrupt])
@pytest.mark.parametrize(("solver", "control"), EVERY)
def test_the_models_own_error_passes_unchanged(solver, control, error):
    mine = error("mine")

    def model(x, t):
        if float(t.max()) > 0.3:
            raise mine
        return x

    with pytest.raises(error) as raised:
        sample_ode(model, torch.ones(2, 1), LINEAR, solver=solver, step_control=control, steps=4)
    assert raised.value is mine


@pytest.mark.parametrize("error", [AssertionError, ValueError])
@pytest.mark.parametrize(("solver", "control"), EVERY)
def test_the_callbacks_own_error_passes_unchanged(solver, control, error):
    mine = error("mine")

    def callback(progress):
        raise mine

    with pytest.raises(error) as raised:
        sample_ode(
            lambda x, t: x, torch.ones(2, 1), LINEAR, solver=solver, step_control=control, steps=4, callback=callback
        )
    assert raised.value is mine


class Mode(nn.Module):
    """Predicts 1 in training mode and 0 otherwise."""

    null_class = 3

    def forward(self, x, t, y=None):
        return torch.full_like(x, float(self.training)) + 0 * x


SAMPLERS = {
    "ode": lambda model, x, y: sample_ode(model, x, LINEAR, solver="euler", steps=2, y=y),
    "sde": lambda model, x, y: sample_sde(model, x, LINEAR, steps=3, diffusion_norm=0.0, y=y),
    "likelihood": lambda model, x, y: log_likelihood(model, x, LINEAR, solver="euler", steps=2, y=y).latent,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        Outer,
        functools.partial,
        lambda m: m.forward,
        lambda m: ClassifierFreeGuidance(functools.partial(Outer(m)), 2.0),
    ],
)
def test_a_model_is_sampled_in_evaluation_mode_and_left_as_it_was(sampler, wrap):
    model = Mode().train()
    x = torch.ones(2, 3)
    torch.testing.assert_close(SAMPLERS[sampler](wrap(model), x, torch.tensor([0, 1])), x)
    assert model.training
    with pytest.raises(ConfigError):
        sample_ode(model, x, LINEAR, steps=0)
    assert model.training


def test_an_object_that_says_it_holds_itself_is_sampled():
    class Endless:
        def __getattr__(self, name):
            return self

        def __call__(self, x, t):
            return 0 * x

    x = torch.ones(2, 3)
    assert torch.equal(sample_ode(Endless(), x, LINEAR, solver="euler", steps=2), x)
