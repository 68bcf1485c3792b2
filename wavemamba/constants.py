"""Constant tensors (permutations, filter banks), made once for every device."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_tensors: dict[tuple[Hashable, torch.device], Tensor] = {}


def constant(key: Hashable, device: torch.device, make: Callable[[], NDArray[Any]]) -> Tensor:
    """The array that `make` returns, on `device`; cached under `key`, not to be written to."""
    tensor = _tensors.get((key, device))
    if tensor is None:
        with torch.inference_mode(False):  # a tensor made in inference mode could not serve training later
            tensor = torch.from_numpy(make().copy()).to(device)
        if type(tensor) is Tensor:  # a fake tensor must not outlive its mode
            _tensors[key, device] = tensor
    return tensor


def compiled_constant(key: Hashable, device: torch.device, make: Callable[[], NDArray[Any]]) -> Tensor:
    """A copy of `constant` for the inside of an op in a compiled graph, whose code may write into its buffers.

    The first run of a compiled graph may allocate from the memory pool of its CUDA graph, by thread or by stream: what
    outlives the run must come from elsewhere.
    """
    if device.type == "cuda" and (key, device) not in _tensors:
        with ThreadPoolExecutor(max_workers=1) as elsewhere:
            elsewhere.submit(constant, key, device, make).result()
    return constant(key, device, make).clone()
