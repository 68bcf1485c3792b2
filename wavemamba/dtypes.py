"""Which dtype sums, and which holds all arguments."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def widest_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype that holds all floating arguments: float64 wins over float32 wins over the 16-bit ones."""
    dtype: torch.dtype | None = None
    for tensor in tensors:
        if tensor is not None:
            dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
    assert dtype is not None
    return dtype


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and sums: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    """A block in which matrix products keep the dtype of their operands: `.float()` alone does not protect them."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
