"""What the kernel backends need of the machine and of a case, the same for every op."""

from __future__ import annotations

import os

import torch

from wavemamba.ops.dispatch.backend import Case, installed

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_TRITON = (3, 3)
"""The kernels carry tuples through unrolled loops, which older releases cannot compile. torch 2.7 brings this one."""


def numba(case: Case) -> str | None:
    """CPU tensors of 32 or 16 bits, with numba installed."""
    if case.device != "cpu":
        return f"runs on the CPU, not on {case.device}"
    if case.dtype not in KERNEL_DTYPES:
        return f"computes in float32, so {case.dtype} goes to 'torch' or 'reference'"
    if not installed("numba"):
        return "numba is not installed"
    return None


def triton(case: Case) -> str | None:
    """GPU tensors of 32 or 16 bits, with a triton installed that is new enough."""
    if case.device != "cuda" and not _interpreting(case):
        return f"runs on a GPU, not on {case.device}"
    if case.dtype not in KERNEL_DTYPES:
        return f"computes in float32, so {case.dtype} goes to 'torch' or 'reference'"
    if not installed("triton"):
        return "triton is not installed"
    if _triton_version() < OLDEST_TRITON:
        return f"needs Triton {'.'.join(map(str, OLDEST_TRITON))} or newer, which comes with torch 2.7"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch gives it no type
def _triton_version() -> tuple[int, ...]:
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2]))


def _interpreting(case: Case) -> bool:
    """Triton's interpreter runs the kernels on CPU tensors, for tests; it must be asked for by the environment."""
    return case.device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def cuda_package(case: Case, module: str) -> str | None:
    """GPU tensors of 32 or 16 bits, with one of the compiled CUDA packages installed."""
    if case.device != "cuda":
        return f"runs on a GPU, not on {case.device}"
    if case.dtype not in KERNEL_DTYPES:
        return f"has no {case.dtype} kernel"
    if not installed(module):
        return f"{module} is not installed"
    return None
