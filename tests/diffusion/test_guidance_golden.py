"""Guidance against the released model's guided outputs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from wavemamba.diffusion import ClassifierFreeGuidance
from wavemamba.models.checkpoints import from_released

FOLDER = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("golden_fill", FOLDER / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with safe_open(FOLDER / "dimsum.safetensors", "pt") as file:
        metadata = file.metadata()
    seed = int(metadata["seed"])
    shapes = json.loads(metadata["parameters"])
    parameters = {name: module.fill(seed, name, tuple(shape)) for name, shape in shapes.items()}
    return from_released(parameters, json.loads(metadata["config"]))


@pytest.mark.parametrize(
    ("name", "options"),
    [("cfg", {"scale": 2.5}), ("adacfg", {"scale": 3.8, "schedule": "power_cosine", "power": 4.0})],
)
def test_guided_output(model: torch.nn.Module, name: str, options: dict) -> None:
    golden = load_file(FOLDER / "dimsum.safetensors")
    with torch.no_grad():
        out = ClassifierFreeGuidance(model, **options)(golden["in.x"], golden["in.t"], y=golden["in.y"])
    # The released call returns the guided prediction twice, for both halves of its batch.
    for half in golden[f"{name}.out"].chunk(2):
        assert (out - half).norm() / half.norm() <= TOLERANCE
