"""The page on diffusion lists every name, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from wavemamba import diffusion as wd

PAGE = (Path(__file__).parents[2] / "docs" / "diffusion.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "table",
    [
        "PATHS",
        "PREDICTIONS",
        "WEIGHTINGS",
        "TIME_SAMPLINGS",
        "ODE_SOLVERS",
        "STEP_CONTROLS",
        "SDE_SOLVERS",
        "DIFFUSIONS",
        "LAST_STEPS",
        "GUIDANCE_SCHEDULES",
    ],
)
def test_every_name_is_listed(table: str) -> None:
    names = [name for name in getattr(wd, table) if "test" not in name]  # those of this library alone
    missing = [name for name in names if f'"{name}"' not in PAGE]
    assert not missing


def test_the_example_runs(capsys) -> None:
    class Model(torch.nn.Module):
        null_class = 10

        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return -x

    namespace = {"model": Model(), "latents": torch.zeros(4, 4, 32, 32), "labels": torch.arange(4)}
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, namespace)
    assert namespace["loss"].shape == ()
    assert namespace["sample"].shape == (4, 4, 32, 32)
    assert capsys.readouterr().out == "25 50\n"
