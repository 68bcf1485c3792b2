"""How the numba kernels run: on threads of our own, as many as PyTorch uses.

numba's parallel loops are not used: its default threading layer aborts the process when two Python threads enter it at
once, and the others do not survive a fork. The kernels release the GIL and work on a range of independent items; here
the ranges are handed to a small pool of daemon threads. The calling thread always works too, so that a call ends even
where every helper is busy with another caller's work, and a forked child starts with an empty pool.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from wavemamba.errors import WavemambaError
from wavemamba.ops.numba_simd import Rows

_PIECES_PER_THREAD = 4  # more even out unequal cores; each costs some 10 microseconds


class _Work:
    """One kernel call, cut into pieces that any thread may take."""

    def __init__(self, kernel: Callable[..., None], count: int, step: int, args: tuple[Any, ...]) -> None:
        self._kernel, self._count, self._step, self._args = kernel, count, step, args
        self._next = 0
        self._unfinished = -(-count // step)
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._error: BaseException | None = None

    def help(self) -> None:
        """Take pieces until none is left."""
        while True:
            with self._lock:
                start = self._next
                self._next += self._step
            if start >= self._count:
                return
            try:
                self._kernel(start, min(start + self._step, self._count), *self._args)
            except BaseException as error:  # handed to the thread that asked, which raises it
                self._error = error
            with self._lock:
                self._unfinished -= 1
                if self._unfinished == 0:
                    self._finished.set()

    def finish(self) -> None:
        """Work along, then wait for the pieces that others took."""
        self.help()
        self._finished.wait()
        if self._error is not None:
            raise self._error


class _Pool:
    def __init__(self) -> None:
        self._queue: SimpleQueue[_Work] = SimpleQueue()
        self._threads = 0
        self._lock = threading.Lock()

    def offer(self, work: _Work, helpers: int) -> None:
        with self._lock:
            while self._threads < helpers:
                self._threads += 1
                threading.Thread(target=self._serve, name=f"wavemamba-{self._threads}", daemon=True).start()
        for _ in range(helpers):
            self._queue.put(work)

    def _serve(self) -> None:
        while True:
            self._queue.get().help()


_pool = _Pool()


def _forget_pool() -> None:
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):  # threads do not survive a fork, nor may their locks be trusted
    os.register_at_fork(after_in_child=_forget_pool)


def parallel(kernel: Callable[..., None], count: int, *args: Any) -> None:
    """Run `kernel(start, stop, *args)` over the items `0 .. count - 1` on `torch.get_num_threads()` threads.

    Args:
        kernel: a compiled function that releases the GIL; items must not depend on each other.
        count: number of items.
        args: passed on; tensors behind addresses are the caller's to keep alive.
    """
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        kernel(0, count, *args)
        return
    step = -(-count // (_PIECES_PER_THREAD * threads))
    work = _Work(kernel, count, step, args)
    _pool.offer(work, threads - 1)
    work.finish()


def float_rows(tensor: Tensor) -> Tensor:
    """The tensor in float32 with neighbouring channels (unit stride in the last dimension), copied only if need be."""
    tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """An optional small tensor as contiguous float32."""
    return None if tensor is None else tensor.float().contiguous()


def rows(tensor: Tensor | None) -> Rows:
    """Address and byte strides of what `float_rows` returned, for a kernel."""
    if tensor is None:
        return Rows(0, 0, 0)
    return Rows(tensor.data_ptr(), 4 * tensor.stride(0), 4 * tensor.stride(1))


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data begin, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def refuse_second_derivative(op: str) -> Callable[..., Any]:
    """An autograd formula for an op that is itself a gradient."""

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise WavemambaError(
            f"{op}: the numba kernel has no second derivative; compute it with backend='torch', which has"
        )

    return refuse
