"""How the numba kernels run: on PyTorch's own threads where they can be borrowed, else on a small pool.

numba's parallel loops are not used: its default threading layer aborts the process when two Python threads enter it at
once, and the others do not survive a fork. Here any number of threads may call a kernel, at any time, see
`wavemamba.ops.cpu.kernels`.

The threads are those of the OpenMP library that PyTorch itself runs on, entered through its C interface: they wait for
work without sleeping for a while after every PyTorch operation, and would compete for the cores with threads of our
own. Where that library has no such interface, and in a forked child, whose OpenMP threads did not survive the fork
(PyTorch's own operations hang there), a pool of Python threads takes their place.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wavemamba.ops.cpu.kernels import FilledJob, Job, count_of, expect_done, kernel, one_vector
from wavemamba.ops.cpu.memory import load_some, store_some
from wavemamba.ops.cpu.pool import Pool
from wavemamba.ops.cpu.simd import LANES, splat
from wavemamba.ops.cpu.tensors import address, empty_rows

_pool = Pool()
_forked = False


def _after_fork() -> None:
    global _pool, _forked
    _pool, _forked = Pool(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _openmp_parallel() -> Any:
    """`GOMP_parallel(function, data, threads, flags)` of the OpenMP library that PyTorch is linked to, or None."""
    for library in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            function = ctypes.CDLL(str(library)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


def launch(compiled: Any, job: FilledJob) -> None:
    """Run a kernel on `torch.get_num_threads()` threads, without the GIL; returns when all items are done.

    Args:
        compiled: made by `kernel`; its items must not depend on each other.
        job: made by the kernel's `Job.fill`; the tensors behind its addresses are the caller's to keep alive.

    Raises:
        MemoryError: there was no scratch memory for the kernel.
    """
    place = ctypes.addressof(job)
    threads = min(torch.get_num_threads(), count_of(job))
    if threads <= 1:
        compiled.ctypes(place)
    elif not _forked and (parallel := _openmp_parallel()) is not None:
        parallel(compiled.address, place, threads, 0)
    else:
        _pool.run(compiled.ctypes, place, threads)
    expect_done(job)


_SUM = Job(slices=np.int64, size=np.int64, source=np.int64, target=np.int64)
_SUM_BLOCK = 64 * LANES


@kernel(_SUM, one_vector)
def _sum(job, item, scratch):  # type: ignore[no-untyped-def]  # numba infers
    slices, size, source, target = job.slices, job.size, job.source, job.target
    for i in range(item * _SUM_BLOCK, min((item + 1) * _SUM_BLOCK, size), LANES):
        total = splat(0.0)
        for s in range(slices):
            total = total + load_some(source + 4 * (s * size + i), size - i, scratch)
        store_some(target + 4 * i, total, size - i, scratch)


def sum_slices(parts: Tensor) -> Tensor:
    """Sum a contiguous float32 tensor over its first dimension, first slice first, whatever the number of threads."""
    if parts.shape[0] == 1:
        return parts[0]
    total = empty_rows(parts.shape[1:])
    job = _SUM.fill(
        -(-total.numel() // _SUM_BLOCK),
        slices=parts.shape[0],
        size=total.numel(),
        source=address(parts),
        target=address(total),
    )
    launch(_sum, job)
    return total
