"""Importing the numba kernels, from wherever their first use is."""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import torch

_MAX, _MIN, _POW = builtins.max, builtins.min, math.pow


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch gives it no type
def import_numba(op: str) -> bool:
    """Import the numba kernels of an op, so that an import statement finds them; returns True.

    Args:
        op: the name of its package, for example "selective_scan".
    """
    name = f"wavemamba.ops.{op}.numba"
    if name not in sys.modules:
        with _python_as_it_is():
            import_module(name)
    return True


@contextmanager
def _python_as_it_is() -> Iterator[None]:
    # torch.export puts its own functions in place of these while it traces; numba cannot even be imported then.
    replaced = builtins.max, builtins.min, math.pow
    builtins.max, builtins.min, math.pow = _MAX, _MIN, _POW
    try:
        yield
    finally:
        builtins.max, builtins.min, math.pow = replaced
