"""How a Triton kernel is launched, and what the hosts of all ops share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from wavemamba.errors import ShapeError

LAUNCH = {"enable_fp_fusion": True}
"""Options of every launch: a product and a sum may become one fused instruction, whatever the release's default."""

_LARGEST_GRID = 2**31 - 1


def launch(kernel: Any, programs: int, device_of: Tensor, *arguments: Any, warps: int = 4, **constants: Any) -> None:
    """Start a kernel on a one-dimensional grid, on the device of one of its tensors.

    Args:
        kernel: a function under `triton.jit`.
        programs: the grid's size.
        device_of: a tensor on the device that must run the kernel, which need not be the current one.
        arguments: what the kernel takes.
        warps: warps of each program.
        constants: its compile-time arguments.

    Raises:
        ShapeError: the grid is larger than a GPU can take, or a tensor's numbers are not where the kernel looks.
    """
    if programs == 0:  # an empty batch
        return
    if programs > _LARGEST_GRID:
        raise ShapeError(f"grid: expected at most {_LARGEST_GRID:,} programs, got {programs:,}; split the batch")
    for tensor in arguments:
        if isinstance(tensor, Tensor) and (tensor.device != device_of.device or tensor.is_neg()):
            raise ShapeError(
                f"GPU kernel: expected plain numbers on {device_of.device}, got {tuple(tensor.shape)} on "
                f"{tensor.device}; use the ops of wavemamba.ops, which see to it"
            )
    with on_device(device_of):
        kernel[(programs,)](*arguments, num_warps=warps, num_stages=1, **constants, **LAUNCH)


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU the current one, as Triton launches on the current device and stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def multiprocessors(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's GPU; 1 for the CPU tensors that the interpreter takes."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def dense_rows(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension is dense, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def rows_of(*tensors: Tensor | None) -> tuple[int, ...]:
    """Strides of batch and step of (B, L, ...) tensors, zeros for None."""
    return tuple(stride for t in tensors for stride in ((0, 0) if t is None else (t.stride(0), t.stride(1))))


def tile_width(channels: int, most: int) -> int:
    """Channels of a tile: a power of two, no more than `most` nor than it takes to hold all, at least 16."""
    return min(most, max(16, int(triton.next_power_of_2(channels))))


def expect_indexable(length: int) -> None:
    """Refuse sequences whose rows do not fit the kernels' 32-bit row numbers."""
    if length > _LARGEST_GRID:
        raise ShapeError(f"length: expected at most {_LARGEST_GRID:,} steps, got {length:,}; split the sequence")
