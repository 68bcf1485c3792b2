"""Every option that is chosen by name: a misspelt one raises, lists the choices and names the nearest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from wavemamba import ConfigError
from wavemamba import diffusion as wd
from wavemamba import training as wt

X = torch.ones(1, 2)
GVP = wd.Objective("gvp")


def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -x


def guided(name: str) -> wd.ClassifierFreeGuidance:
    return wd.ClassifierFreeGuidance(model, 2.0, schedule=name, null_class=3)


def likelihood(**options: str) -> wd.LogLikelihood:
    return wd.log_likelihood(model, X, GVP, steps=2, **{"solver": "euler", **options})


REGISTRIES: dict[str, tuple[tuple[str, ...] | dict, list[Callable[[str], object]]]] = {
    "path": (wd.PATHS, [wd.get_path, wd.Objective]),
    "prediction": (wd.PREDICTIONS, [lambda name: wd.Objective("gvp", name)]),
    "weighting": (wd.WEIGHTINGS, [lambda name: wd.Objective("gvp", "score", name)]),
    "time sampling": (
        wd.TIME_SAMPLINGS,
        [wd.get_time_sampling, lambda name: wd.Objective("gvp", time_sampling=name)],
    ),
    "solver of the flow": (
        wd.ODE_SOLVERS,
        [lambda name: wd.sample_ode(model, X, GVP, solver=name, steps=3), lambda name: likelihood(solver=name)],
    ),
    "step control": (
        wd.STEP_CONTROLS,
        [lambda name: wd.sample_ode(model, X, GVP, step_control=name), lambda name: likelihood(step_control=name)],
    ),
    "solver of the SDE": (wd.SDE_SOLVERS, [lambda name: wd.sample_sde(model, X, GVP, solver=name, steps=3)]),
    "diffusion": (
        wd.DIFFUSIONS,
        [
            lambda name: wd.sample_sde(model, X, GVP, diffusion=name, steps=3),
            lambda name: wd.diffusion_coefficient(name, GVP.path, torch.ones(1)),
        ],
    ),
    "last step": (wd.LAST_STEPS, [lambda name: wd.sample_sde(model, X, GVP, last_step=name, steps=3)]),
    "guidance schedule": (wd.GUIDANCE_SCHEDULES, [guided]),
    "learning rate schedule": (
        wt.LR_SCHEDULES,
        [lambda name: wt.learning_rate_factor(name, warmup=0, steps=3)],
    ),
}


@pytest.mark.parametrize("registry", REGISTRIES)
def test_misspelt_names_list_every_choice_and_the_nearest(registry: str) -> None:
    choices, uses = REGISTRIES[registry]
    for right in choices:
        for wrong in (right[:-1] + "q", right + "x"):
            for use in uses:
                with pytest.raises(ConfigError) as raised:
                    use(wrong)
                for choice in choices:
                    assert repr(choice) in str(raised.value)
                assert f"got {wrong!r}" in str(raised.value)
                assert "did you mean " in str(raised.value)


@pytest.mark.parametrize("registry", REGISTRIES)
def test_every_name_works_however_it_is_spelt(registry: str) -> None:
    choices, uses = REGISTRIES[registry]
    for name in choices:
        for use in uses:
            if name == "scipy_solver" or (registry == "solver of the flow" and name in list(wd.ODE_SOLVERS)[9:]):
                continue  # these run in the tests of the solvers
            use(name.upper().replace("_", "-"))
