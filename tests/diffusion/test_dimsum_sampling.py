"""Solvers and a real model agree on which times exist."""

import pytest
import torch

from wavemamba import create_model
from wavemamba.diffusion import ClassifierFreeGuidance, Objective, get_path, sample_ode


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("solver", ["dopri5", "euler", "heun"])
def test_no_solver_leaves_the_times_of_a_dimsum_model(solver, guided):
    torch.manual_seed(0)
    model = create_model("dimsum_tiny", img_size=4, dim=32, depth=1, num_classes=3).eval()
    torch.nn.init.normal_(model.head.linear.weight, std=0.5)
    call = ClassifierFreeGuidance(model, 2.0) if guided else model
    sample = sample_ode(
        call, torch.randn(2, 4, 4, 4), Objective(get_path("gvp")), solver=solver, steps=4, y=torch.tensor([0, 2])
    )
    assert torch.isfinite(sample).all()
