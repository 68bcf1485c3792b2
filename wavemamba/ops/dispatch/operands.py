"""What every tensor of a call must be before any backend sees it."""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.checks import expect_tensor
from wavemamba.errors import ShapeError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def expect_operands(**tensors: Tensor | None) -> None:
    """Raise `ShapeError` unless all are dense real tensors of one device: kernels know nothing but addresses.

    Args:
        tensors: by their names; the first one is what the others are compared with; None for what is absent.

    Raises:
        ShapeError: one is no tensor, lies elsewhere, is sparse, nested or quantised, or is not of float64, float32,
            bfloat16 or float16.
    """
    first: Tensor | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        expect_tensor(name, tensor)
        if tensor.dtype not in DTYPES:
            raise ShapeError(
                f"{name}: expected float64, float32, bfloat16 or float16, a real floating dtype, got {tensor.dtype}; "
                "convert it, for example with .float()"
            )
        if tensor.layout is not torch.strided or tensor.is_nested:
            layout = "nested" if tensor.is_nested else tensor.layout
            raise ShapeError(f"{name}: expected a dense tensor, got a layout {layout}; convert it with .to_dense()")
        first = tensor if first is None else first
        expect_beside(name, tensor, first)


def expect_beside(name: str, tensor: Tensor, first: Tensor) -> None:
    """Raise `ShapeError` unless a tensor lies on the device of the first operand."""
    if tensor.device != first.device:
        raise ShapeError(
            f"{name}: expected the device of the first input, {first.device}, got {tensor.device}; "
            f"move it with .to({str(first.device)!r})"
        )
