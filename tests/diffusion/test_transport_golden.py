"""Agreement with the released transport code's values, float32 on CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wavemamba.diffusion import DIFFUSIONS, Objective, diffusion_coefficient, get_path, sample_ode

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "transport.safetensors")
PATHS = ("Linear", "GVP", "VP")
TOLERANCE = 1e-5


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    t = t.view(-1, 1, 1, 1)
    return torch.tanh(0.7 * x * torch.cos(2 * t) - 0.3 * x.flip(-1) + t)


def agrees(value: torch.Tensor, name: str) -> None:
    expected = GOLDEN[name]
    assert value.shape == expected.shape
    error = (value - expected).norm() / expected.norm().clamp_min(1e-12)
    assert error <= TOLERANCE, f"{name}: relative error {error:.2e}"


def test_network_is_the_golden_one() -> None:
    agrees(network(GOLDEN["x0"], GOLDEN["t"]), "model_out")


@pytest.mark.parametrize("path", PATHS)
def test_path(path: str) -> None:
    xt, ut = get_path(path).interpolate(GOLDEN["x0"], GOLDEN["x1"], GOLDEN["t"])
    agrees(xt, f"{path}.xt")
    agrees(ut, f"{path}.ut")


@pytest.mark.parametrize("weighting", [None, "velocity", "likelihood"])
@pytest.mark.parametrize("prediction", ["velocity", "score", "noise"])
@pytest.mark.parametrize("path", PATHS)
def test_loss(path: str, prediction: str, weighting: str | None) -> None:
    objective = Objective(path, prediction, weighting)
    loss = objective.loss(network, GOLDEN["x1"], t=GOLDEN["t"], x0=GOLDEN["x0"])
    agrees(loss, f"{path}.{prediction}.loss.{weighting}")


@pytest.mark.parametrize("prediction", ["velocity", "score", "noise"])
@pytest.mark.parametrize("path", PATHS)
def test_drift_and_score(path: str, prediction: str) -> None:
    objective = Objective(path, prediction)
    agrees(objective.velocity(network)(GOLDEN[f"{path}.xt"], GOLDEN["t"]), f"{path}.{prediction}.drift")
    agrees(objective.score(network)(GOLDEN[f"{path}.xt"], GOLDEN["t"]), f"{path}.{prediction}.score")


@pytest.mark.parametrize("form", DIFFUSIONS)
@pytest.mark.parametrize("path", PATHS)
def test_diffusion_coefficient(path: str, form: str) -> None:
    t = GOLDEN["t"].view(-1, 1, 1, 1)
    agrees(diffusion_coefficient(form, get_path(path), t), f"{path}.diffusion.{form}")


@pytest.mark.parametrize(
    ("solver", "points"), [("euler", 20), ("heun2", 20), ("midpoint", 10), ("rk4", 10), ("dopri5", 50)]
)
@pytest.mark.parametrize("path", PATHS)
def test_ode_end_point(path: str, solver: str, points: int) -> None:
    # The golden values count time points: one more than steps.
    sample = sample_ode(
        network, GOLDEN["z"], Objective(path), solver=solver, steps=points - 1, overshoot=solver == "dopri5"
    )
    agrees(sample, f"{path}.ode.{solver}.{points}")
