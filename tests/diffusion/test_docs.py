"""The page on diffusion lists every name, and its example runs."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "diffusion.md").read_text(encoding="utf-8")


TABLES = (
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
)


@functools.cache
def names_of_the_library() -> dict[str, list[str]]:
    """In a process of their own: other tests register names of theirs."""
    code = "import json, sys; from wavemamba import diffusion as wd\n"
    code += "print(json.dumps({table: list(getattr(wd, table)) for table in sys.argv[1:]}))"
    done = subprocess.run([sys.executable, "-c", code, *TABLES], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("table", TABLES)
def test_every_name_is_listed(table: str) -> None:
    names = names_of_the_library()[table]
    assert names
    assert not [name for name in names if f'"{name}"' not in PAGE]


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
