"""What the kernel backends need of the machine and of a case, the same for every op."""

from __future__ import annotations

import contextlib
import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from wavemamba.ops.dispatch.backend import NUMBA_SWITCHED_OFF, Case, requested_backend

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_TRITON = (3, 3)
"""The kernels carry tuples through unrolled loops, which older releases cannot compile. torch 2.7 brings this one."""


OLDEST_FLA = (0, 3)
"""Older ones took heads before steps."""


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _triton_version() -> tuple[int, ...]:
    try:
        return tuple(map(int, version("triton").split(".")[:2]))
    except PackageNotFoundError:  # a build under another name, such as AMD's: new enough
        return OLDEST_TRITON


def _fla_version() -> tuple[int, ...]:
    for package in ("fla-core", "flash-linear-attention"):  # the second one held the kernels before there was a first
        with contextlib.suppress(PackageNotFoundError):
            return tuple(map(int, version(package).split(".")[:2]))
    return OLDEST_FLA  # a checkout: new enough


# Looked up once, without importing any: torch.compile reads plain values, and cannot look for packages itself.
COMPILED_PART = {"mamba_ssm": "selective_scan_cuda", "causal_conv1d": "causal_conv1d_cuda"}
"""The extension that does the work of a CUDA package; newer mamba-ssm can be installed without."""
INSTALLED = {name: _is_installed(name) for name in ("numba", "triton", "fla", *COMPILED_PART, *COMPILED_PART.values())}
TRITON_VERSION = _triton_version()
FLA_VERSION = _fla_version() if INSTALLED["fla"] else OLDEST_FLA


def numba(case: Case) -> str | None:
    """CPU tensors of 32 or 16 bits, with numba installed."""
    if case.device != "cpu":
        return f"runs on the CPU, not on {case.device}"
    if case.dtype not in KERNEL_DTYPES:
        return f"computes in float32, so {case.dtype} goes to 'torch' or 'reference'"
    if not INSTALLED["numba"]:
        return "numba is not installed"
    return NUMBA_SWITCHED_OFF if numba_is_switched_off() else None


def numba_takes_part(case: Case) -> bool:
    """Whether numba runs what is no op of a table, so that nobody names a backend for it: where it can, unless
    `use_backend` or `WAVEMAMBA_BACKEND` name another one."""
    return requested_backend("auto") in ("auto", "numba") and numba(case) is None


def numba_is_switched_off() -> bool:
    """Whether the environment keeps numba from compiling; it reads any number but 0 so."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0").strip() not in ("", "0")


def triton(case: Case) -> str | None:
    """GPU tensors of 32 or 16 bits, with a triton installed that is new enough."""
    if case.device != "cuda" and not _interpreting(case):
        return f"runs on a GPU, not on {case.device}"
    if case.dtype not in KERNEL_DTYPES:
        return f"computes in float32, so {case.dtype} goes to 'torch' or 'reference'"
    return _triton_itself()


def _triton_itself() -> str | None:
    if not INSTALLED["triton"]:
        return "triton is not installed"
    if TRITON_VERSION < OLDEST_TRITON:
        return f"needs Triton {'.'.join(map(str, OLDEST_TRITON))} or newer, which comes with torch 2.7"
    return None


def _interpreting(case: Case) -> bool:
    """Triton's interpreter runs the kernels on CPU tensors, for tests; it must be asked for by the environment."""
    return case.device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def cuda_package(case: Case, module: str) -> str | None:
    """GPU tensors of 32 or 16 bits, with one of the compiled CUDA packages installed."""
    if case.device != "cuda":
        return f"runs on a GPU, not on {case.device}"
    if case.dtype not in KERNEL_DTYPES:
        return f"has no {case.dtype} kernel"
    if not INSTALLED[module]:
        return f"{module} is not installed"
    if not INSTALLED[COMPILED_PART[module]]:
        return f"{module} is installed without its compiled part, {COMPILED_PART[module]}"
    return None


def fla(case: Case) -> str | None:
    """GPU tensors of 32 or 16 bits, with the Triton kernels of flash-linear-attention installed; none are compiled."""
    if case.device != "cuda":
        return f"runs on a GPU, not on {case.device}"
    if case.dtype not in KERNEL_DTYPES:
        return f"has no {case.dtype} kernel"
    if not INSTALLED["fla"]:
        return "fla is not installed"
    if FLA_VERSION < OLDEST_FLA:
        return f"needs fla-core {'.'.join(map(str, OLDEST_FLA))} or newer"
    return _triton_itself()


def chunk_kernels(case: Case) -> str | None:
    """What no chunked kernel of another package can do: they are Python functions around products on tensor cores."""
    if case.sizes.get("batch") == 0:
        return "takes no empty batch"
    if torch.compiler.is_compiling():
        return "is no part of a graph that torch.compile makes"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "has no rule for torch.func"
    if "float32 products" in case.features and torch.get_float32_matmul_precision() == "highest":
        return "multiplies float32 in TF32, which torch.set_float32_matmul_precision('high') allows"
    return None
