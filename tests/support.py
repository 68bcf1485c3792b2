"""What several test files share: golden files, errors, and the inputs of a scan."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"

_spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
fill = _module.fill


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 error in float64; NaN counts as infinite."""
    actual, expected = actual.detach().double(), expected.detach().double()
    error = (actual - expected).norm() / expected.norm().clamp_min(1e-30)
    return float("inf") if torch.isnan(error) else float(error)


def golden_model(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """A golden model file: its released configuration, its filled parameters, its tensors."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
    shapes = json.loads(metadata["parameters"])
    state = {key: fill(int(metadata["seed"]), key, tuple(shape)) for key, shape in shapes.items()}
    return json.loads(metadata["config"]), state, tensors


def scan_inputs(
    batch: int = 2, length: int = 13, width: int = 6, state: int = 4, groups: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """Float64 inputs of a selective scan with every optional part, decaying states and ordinary step sizes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "u": normal(batch, length, width),
        "delta": 0.5 * normal(batch, length, width),
        "A": -torch.rand((width, state), generator=generator, dtype=torch.float64) - 0.1,
        "B": normal(batch, length, groups, state),
        "C": normal(batch, length, groups, state),
        "D": normal(width),
        "z": normal(batch, length, width),
        "delta_bias": normal(width) - 1,
        "initial_state": normal(batch, width, state),
    }
