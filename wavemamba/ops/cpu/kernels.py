"""What a numba kernel is: a C function of one pointer, to a `Job`, compiled once and kept on disk.

It is made of a body that does one item. Every thread that calls it takes items from the job's counter until none is
left, and at the end adds how many it finished, so that any number of threads may help and the caller sees whether all
the work was done. A thread that gets no scratch memory takes no item.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature
from numba.np.numpy_support import carray

from wavemamba.ops.cpu.disk_cache import DiskCache, warn_not_kept
from wavemamba.ops.cpu.simd import VECTOR_BYTES, in_place, instruction

ROWS = np.dtype([("address", np.int64), ("batch", np.int64), ("row", np.int64), ("size", np.int64)])
"""A tensor (B, L, E) with neighbouring channels: address, byte strides, and the bytes of a number, 4 for float32 and 2
for bfloat16; address 0 where absent."""
_DONE = 16
"""Where a job counts the finished items, in bytes."""
_COUNTS = struct.Struct("=qqq")
_CACHE_LINE = 64

FilledJob: TypeAlias = "ctypes.Array[ctypes.c_char]"


class Job:
    """The arguments of a kernel as one C structure, which starts with three numbers of items: taken, all, finished.

    Args:
        fields: name and numpy dtype of each argument; int64 for sizes and addresses.
    """

    def __init__(self, **fields: Any) -> None:
        self.names = tuple(fields)
        counts = [(name, np.int64) for name in ("next", "count", "done")]
        dtype = np.dtype([*counts, *fields.items()])
        self.signature = types.void(types.CPointer(from_dtype(dtype)))  # type: ignore[no-untyped-call]  # as above
        codes = "".join(4 * "q" if field == ROWS else np.dtype(field).char for field in fields.values())
        self._packed = struct.Struct(_COUNTS.format + codes.replace("l", "q"))
        self._bytes: type[FilledJob] = ctypes.c_char * self._packed.size

    def fill(self, count: int, **values: Any) -> FilledJob:
        """A job of `count` items; every field must be given."""
        numbers: list[Any] = [0, count, 0]
        for name in self.names:
            value = values[name]
            if type(value) is tuple:
                numbers += value
            else:
                numbers.append(value)
        return self._bytes.from_buffer_copy(self._packed.pack(*numbers))


def count_of(job: FilledJob) -> int:
    """The number of a job's items."""
    count: int = _COUNTS.unpack_from(job)[1]
    return count


def expect_done(job: FilledJob) -> None:
    """Raise where a kernel came back without having finished every item.

    Raises:
        MemoryError: no thread had scratch memory for the rest.
    """
    _, count, done = _COUNTS.unpack_from(job)
    if done != count:
        raise MemoryError(
            f"a CPU kernel finished {done} of {count} parts: the system gave no scratch memory for the others; "
            "free memory or make the batch smaller"
        )


@instruction
def _take_item(typing: Any, job_address: Any) -> Any:
    """Atomically draw the next item of the job at an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), codegen


@instruction
def _add(typing: Any, address: Any, number: Any) -> Any:
    """Atomically add to the int64 at an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.atomic_rmw("add", builder.inttoptr(args[0], ir.IntType(64).as_pointer()), args[1], "monotonic")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@instruction
def _allocate(typing: Any, size: Any) -> Any:
    """The address of so many bytes, or 0 where there are none: an exception in a kernel would be lost."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ptrtoint(context.nrt.allocate_unchecked(builder, args[0]), ir.IntType(64))

    return types.int64(types.int64), codegen


@instruction
def _release(typing: Any, address: Any) -> Any:
    """Give back what `_allocate` gave."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        context.nrt.free(builder, builder.inttoptr(args[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def one_vector(job: Any) -> int:
    """The scratch memory of a kernel that reads and writes parts of vectors: room for one."""
    return VECTOR_BYTES


class _Kernel(CFunc):
    def keep_on_disk(self, body: Callable[..., None]) -> None:
        """Look for the machine code beside the source of the body, and leave it there."""
        self._cache: Any = DiskCache(body, _sources_digest(Path(body.__code__.co_filename).parent))


def kernel(
    job: Job,
    scratch: Callable[[Any], int] = lambda job: 0,
    prepare: Callable[[Any, int], None] = lambda job, scratch: None,
) -> Callable[[Callable[[Any, int, int], None]], Any]:
    """Make a kernel of a body `(job, item, scratch)`, compiled at once, or loaded from the disk cache.

    The machine code lies beside the source file, or in the user's cache directory where that is read-only; where that
    is read-only too, the kernel is compiled in every process.

    Args:
        job: the fields of what the body is given, beside `count` items.
        scratch: of a job, the bytes of the memory that each thread has, from a multiple of a cache line on.
        prepare: called by each thread with the job and this memory, before its first item.
    """

    def compile_kernel(body: Callable[[Any, int, int], None]) -> Any:
        do_item, size, begin = in_place(body), in_place(scratch), in_place(prepare)

        def run(pointer):  # type: ignore[no-untyped-def]  # numba infers
            jobs = carray(pointer, 1)
            job = jobs[0]
            memory = _allocate(size(job) + _CACHE_LINE)
            if memory == 0:
                return
            room = (memory + _CACHE_LINE - 1) & -_CACHE_LINE
            begin(job, room)
            done = 0
            while True:
                item = _take_item(jobs.ctypes.data)
                if item >= job.count:
                    break
                do_item(job, item, room)
                done += 1
            _add(jobs.ctypes.data + _DONE, done)
            _release(memory)

        # Machine code of many kernels meets in one process: each has its own name.
        run.__name__, run.__qualname__, run.__module__ = body.__name__, body.__qualname__, body.__module__
        signature = normalize_signature(job.signature)  # type: ignore[no-untyped-call]  # as above
        compiled = _Kernel(run, signature, locals={}, options={"error_model": "numpy"})
        try:
            compiled.keep_on_disk(body)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            warn_not_kept(str(error))
        compiled.compile()
        return compiled

    return compile_kernel


@functools.cache
def _sources_digest(folder: Path) -> int:
    """Of the files that a kernel in a folder is made from."""
    digest = 0
    for path in sorted({*Path(__file__).parent.glob("*.py"), *folder.glob("numba_*.py")}):
        digest = zlib.crc32(path.read_bytes(), digest)
    return digest
