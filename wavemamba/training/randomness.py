"""Randomness as a function of where a run stands, so that a resumed run draws what an unbroken one would."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wavemamba.seeds import derive_seed


def seed_everything(*parts: int | str) -> None:
    """Seed Python's, numpy's and torch's global generators (every device) with `derive_seed(*parts)`."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (third-party transforms still draw from the global one)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every global generator of this process, in plain containers and tensors.

    Returns:
        `python`, `numpy`, `torch` and `cuda` (one entry a device); loads with `torch.load(weights_only=True)`.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned; devices that are no longer there are left out."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(_bytes(state["torch"]))
    for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_bytes(device_state), device)


def _bytes(state: Tensor) -> Tensor:
    # Generators accept only a CPU byte tensor, wherever the checkpoint was mapped to.
    return state.to("cpu", torch.uint8)
