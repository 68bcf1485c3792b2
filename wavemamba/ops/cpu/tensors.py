"""How tensors become what the numba kernels read and write: memory of float32 numbers at an address."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wavemamba.errors import ShapeError
from wavemamba.scans import expect_permutation

_HUGE_PAGE = 1 << 21
_OWN_MAPPING = 1 << 25
"""Bytes from which glibc takes a tensor's memory fresh from the system, and gives it back afterwards."""


@functools.cache
def _advise() -> Any:
    """`madvise(address, size, advice)` of the C library, or None where the system has no huge pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def empty_rows(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised tensor; a large one in huge pages, where Linux has them to give.

    Fresh memory costs a page fault for every page that is first written, which takes a fifth of a long scan's time at
    4 KiB a page.
    """
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    if tensor.nbytes >= _OWN_MAPPING and (advise := _advise()) is not None:
        first = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        advise(first, tensor.data_ptr() + tensor.nbytes - first, mmap.MADV_HUGEPAGE)  # where it fails, pages are small
    return tensor


def float_rows(tensor: Tensor) -> Tensor:
    """The tensor in float32 with neighbouring channels (unit stride in the last dimension), copied only if need be."""
    tensor = tensor.float()
    return tensor if _has_dense_rows(tensor) else tensor.contiguous()


def kernel_rows(tensor: Tensor) -> Tensor:
    """`float_rows`, but bfloat16 stays as it is: for kernels that read it."""
    if tensor.dtype is not torch.bfloat16:
        return float_rows(tensor)
    return tensor if _has_dense_rows(tensor) else tensor.contiguous()


def kernel_dtype(dtype: torch.dtype) -> torch.dtype:
    """What kernels that read and write bfloat16 write where `dtype` is asked for."""
    return torch.bfloat16 if dtype is torch.bfloat16 else torch.float32


def contiguous(tensor: Tensor) -> Tensor:
    """A small tensor as contiguous float32."""
    return tensor.float().contiguous()


def checked_order(order: Tensor | None, length: int) -> Tensor | None:
    """A scan order as contiguous int64, a true permutation: a kernel would write wherever its entries point.

    The op's caller has checked it already, but not inside a compiled graph, where values are not known.
    """
    return None if order is None else expect_permutation(order, length).contiguous()


def rows(tensor: Tensor | None, *, may_be_narrow: bool = False) -> tuple[int, int, int, int]:
    """A tensor with dense rows, (B, L, E), as a field of type `ROWS`; zeros for None.

    Args:
        tensor: float32; or bfloat16, where the kernel reads that.
        may_be_narrow: whether it does.
    """
    if tensor is None:
        return 0, 0, 0, 0
    size = tensor.element_size()
    place = _pointer(tensor, _has_dense_rows(tensor), narrow=may_be_narrow)
    return place, size * tensor.stride(0), size * tensor.stride(1), size


def address(tensor: Tensor | None) -> int:
    """Where the numbers of a contiguous float32 or int64 tensor begin, 0 for None."""
    return 0 if tensor is None else _pointer(tensor, tensor.is_contiguous())


def origin(tensor: Tensor) -> int:
    """Where the numbers of a float32 tensor begin, for a kernel that is given all its strides."""
    return _pointer(tensor, tensor.dtype is torch.float32)


def _has_dense_rows(tensor: Tensor) -> bool:
    return tensor.stride(-1) == 1 or tensor.shape[-1] == 1 or tensor.numel() == 0  # an empty one keeps any strides


def _pointer(tensor: Tensor, is_dense: bool, narrow: bool = False) -> int:
    """The only way from a tensor to a kernel: no kernel can tell whether its numbers are where it looks for them.

    Raises:
        ShapeError: they are not, since the tensor is on another device, of another dtype, not dense, or lazily negated.
    """
    dtype = tensor.dtype
    known = dtype is torch.float32 or dtype is torch.int64 or (narrow and dtype is torch.bfloat16)
    if is_dense and tensor.is_cpu and known and not tensor.is_neg():
        return tensor.data_ptr()
    raise ShapeError(
        f"CPU kernel: expected dense float32 or int64 numbers on the CPU, got {tuple(tensor.shape)} with strides "
        f"{tensor.stride()} in {dtype} on {tensor.device}; use the ops of wavemamba.ops, which convert them"
    )
