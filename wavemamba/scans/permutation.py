"""Permutations as tensors: what makes one, its inverse, its reverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from wavemamba.errors import ShapeError

_REMEDY = "pass a permutation of 0 .. L - 1, such as ScanOrder.permutation(H, W) or torch.randperm(L)"


def expect_permutation(order: Any, length: int) -> Tensor:
    """Return `order` as an int64 permutation of `0 .. length - 1`, or raise.

    The values are read, on a GPU with a wait for it, where they do not come from a `ScanOrder` or were written to
    since; on the CPU always. Where values cannot be read (`torch.compile`, `torch.export`, fake and meta tensors, the
    capture of a CUDA graph), dtype and shape alone are checked.

    Args:
        order: (L,) int64 or int32, the token that each step visits.
        length: L.

    Returns:
        (L,) int64: `order` itself, where it is one.

    Raises:
        ShapeError: `order` is no tensor, or has another dtype or shape, or repeats, skips or exceeds the tokens, or
            `torch.vmap` gives each entry another one.
    """
    if not isinstance(order, Tensor):
        raise ShapeError(
            f"order: expected a tensor ({length},) of int64 or int32, got {type(order).__name__}; {_REMEDY}"
        )
    if order.dtype not in (torch.int64, torch.int32):
        raise ShapeError(f"order: expected int64 or int32, got {order.dtype}; {_REMEDY}")
    if order.dim() != 1 or order.shape[0] != length:
        raise ShapeError(f"order: expected shape ({length},), a step a token, got {tuple(order.shape)}; {_REMEDY}")
    if torch.compiler.is_compiling() or _is_unreadable(order):
        return order.long()
    if torch._C._functorch.is_batchedtensor(order):
        raise ShapeError("order: expected one order for all entries of vmap, got one an entry; call it once an order")
    if not _is_trusted(order):
        fault = _fault(order)
        if fault:
            raise ShapeError(f"order: expected every token 0 to {length - 1} once, got {fault}; {_REMEDY}")
    return order.long()


def invert_permutation(order: Tensor) -> Tensor:
    """The permutation that puts back what `order` gathered: `inverse[order[l]] = l`.

    Args:
        order: (L,) int64.

    Returns:
        (L,) int64.
    """
    steps = torch.arange(order.shape[0], device=order.device)
    return _as_trusted_as(order, torch.empty_like(order).scatter_(0, order, steps))


def reverse_permutation(order: Tensor) -> Tensor:
    """The same visits, last first: (L,) int64 to (L,) int64."""
    return _as_trusted_as(order, order.flip(0))


def trust(order: Tensor) -> None:
    """Note on a tensor that it is a permutation for as long as nobody writes to it."""
    order._wavemamba_permutation = order._version  # type: ignore[attr-defined]  # tensors carry attributes


def _as_trusted_as(order: Tensor, made_of_it: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() and _is_unwritten(order) and not made_of_it.is_inference():
        trust(made_of_it)
    return made_of_it


def _is_unwritten(order: Tensor) -> bool:
    version = getattr(order, "_wavemamba_permutation", None)
    return version is not None and version == order._version


def _is_trusted(order: Tensor) -> bool:
    # What `order.numpy()` shares is written to without a new version, and a kernel would then write anywhere.
    return _is_unwritten(order) and not _is_array(order)


def _is_array(order: Tensor) -> bool:
    """Whether NumPy reads the values: neither a trace nor a transform of `torch.func` lets it."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return order.is_cpu and type(order) is Tensor and not transformed and torch._C._get_tracing_state() is None


def _is_unreadable(order: Tensor) -> bool:
    if isinstance(order, FakeTensor) or order.is_meta:
        return True
    return order.is_cuda and torch.cuda.is_current_stream_capturing()


def _fault(order: Tensor) -> str:
    """What keeps a tensor from being a permutation; empty where nothing does."""
    length = order.shape[0]
    if _is_array(order) and _is_permutation(order.detach().resolve_neg().numpy()):
        return ""
    order = order.detach().long()
    inside = (order >= 0) & (order < length)
    visits = torch.zeros(length, dtype=torch.bool, device=order.device)
    visits.index_fill_(0, order.clamp(0, max(length - 1, 0)), True)  # plain indexing takes a hundred times as long
    if bool((inside & visits).all()):
        return ""
    if not bool(inside.all()):
        return f"{int(order[~inside][0])}"
    return f"no step at token {int((~visits).nonzero()[0, 0])} and a token visited twice"


def _is_permutation(order: NDArray[Any]) -> bool:
    """The same in a few microseconds, for an array."""
    length = len(order)
    if length == 0 or order.min() < 0 or order.max() >= length:
        return length == 0
    visits = np.zeros(length, dtype=bool)
    visits[order] = True
    return bool(visits.all())
