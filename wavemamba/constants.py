"""Constant tensors (permutations, filters), made once for every device and kept within a number of bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

BUDGET = 64 * 2**20
"""Bytes of all constants together."""


class TensorCache:
    """Tensors by key, of so many bytes at most: what was not asked for longest goes first. Safe to share by threads.

    A tensor that was written to is forgotten.

    Args:
        budget: bytes of all tensors together; a larger tensor is not kept.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.clear()

    def clear(self) -> None:
        """Forget every tensor."""
        self._lock = threading.RLock()  # a new one: in a forked child the old one may be held for ever
        self._kept: OrderedDict[Hashable, tuple[Tensor, int, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor kept under `key`, if it is still there and as it was."""
        with self._lock:
            entry = self._kept.get(key)
            if entry is None:
                return None
            tensor, version, _ = entry
            if tensor._version != version:
                self._drop(key)
                return None
            self._kept.move_to_end(key)
            return tensor

    def keep(self, key: Hashable, tensor: Tensor) -> Tensor:
        """Keep a tensor under `key`; the one that is there already, where another thread was faster."""
        with self._lock:
            there = self.get(key)
            if there is not None:
                return there
            if tensor.nbytes <= self.budget:
                self._kept[key] = tensor, tensor._version, tensor.nbytes
                self.bytes += tensor.nbytes
                while self.bytes > self.budget:
                    self._drop(next(iter(self._kept)))
        return tensor

    def _drop(self, key: Hashable) -> None:
        self.bytes -= self._kept.pop(key)[2]


_cache = TensorCache(BUDGET)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cache.clear)


def constant(
    key: Hashable,
    device: torch.device,
    make: Callable[[], NDArray[Any]],
    *,
    prepare: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The array that `make` returns, on `device`; cached under `key`, not to be written to.

    Args:
        key: all that the array depends on.
        device: where the tensor lies.
        make: returns the array.
        prepare: called once with a tensor that was just made.
    """
    place = _placed(device)
    tensor = _cache.get((key, place))
    if tensor is not None:
        return tensor
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]  # public, though untyped
        return _elsewhere(key, place, make, prepare)
    with torch.inference_mode(False):  # a tensor made in inference mode could not serve training later
        tensor = torch.from_numpy(make().copy()).to(place)
    if prepare is not None:
        prepare(tensor)
    return (
        _cache.keep((key, place), tensor) if type(tensor) is Tensor else tensor
    )  # a fake one must not outlive its mode


def compiled_constant(key: Hashable, device: torch.device, make: Callable[[], NDArray[Any]]) -> Tensor:
    """A copy of `constant` for the inside of an op in a compiled graph, whose code may write into its buffers."""
    place = _placed(device)
    if place.type == "cuda" and _cache.get((key, place)) is None:
        return _elsewhere(key, place, make, None).clone()
    return constant(key, place, make).clone()


def _elsewhere(
    key: Hashable, place: torch.device, make: Callable[[], NDArray[Any]], prepare: Callable[[Tensor], None] | None
) -> Tensor:
    # In a thread of its own: what outlives the run must come neither from the memory pool of a CUDA graph, from which
    # the first run of a compiled graph may allocate, by thread or by stream, nor out of the trace of torch.jit.
    with ThreadPoolExecutor(max_workers=1) as elsewhere:
        return elsewhere.submit(constant, key, place, make, prepare=prepare).result()


def _placed(device: torch.device) -> torch.device:
    # "cuda" means another device wherever the current one changes.
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device
