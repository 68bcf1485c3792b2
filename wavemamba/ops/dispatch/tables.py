"""Every op's table of backends."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from wavemamba.ops.dispatch.backend import Backend


@functools.cache
def tables() -> Mapping[str, tuple[Backend, ...]]:
    """The `BACKENDS` of every op by its name, which is that of its folder in `wavemamba/ops/`; imports no kernels."""
    found = {}
    for package in pkgutil.iter_modules([str(Path(__file__).parents[1])]):
        if package.ispkg:
            module = importlib.import_module(f"wavemamba.ops.{package.name}")
            if hasattr(module, "BACKENDS"):
                found[package.name] = module.BACKENDS
    return MappingProxyType(found)
