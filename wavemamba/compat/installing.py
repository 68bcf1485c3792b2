"""Putting the modules under the packages' own names."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

from wavemamba.errors import ConfigError
from wavemamba.names import check_names

# Each package, and the compiled module without which it does not run.
PACKAGES = {"mamba_ssm": "selective_scan_cuda", "causal_conv1d": "causal_conv1d_cuda"}
COMPILED = {
    "mamba_ssm": ("selective_scan_cuda", "selective_scan_cuda_core", "selective_scan_cuda_oflex"),
    "causal_conv1d": ("causal_conv1d_cuda",),
}
# What does the work of modules that are not offered, by how their names begin.
INSTEAD = {
    "mamba_ssm.ops.triton.ssd_": "wavemamba.ops.ssd_scan does the whole scan, with its gradients",
    "mamba_ssm.modules.mamba2_simple": "mamba_ssm.modules.mamba2.Mamba2 is the same mixer, from zero states",
    "mamba_ssm.distributed": "torch.distributed.fsdp shards a model",
}


class NotOffered(MetaPathFinder):
    """Comes last in the search for a module: the error of a sub-module that is not offered says what is instead."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> None:
        """Find nothing.

        Raises:
            ModuleNotFoundError: the module would be part of a package whose name is ours now.
        """
        package = fullname.partition(".")[0]
        if package in PACKAGES and _is_ours(sys.modules.get(package)):
            remedies = (remedy for start, remedy in INSTEAD.items() if fullname.startswith(start))
            remedy = next(remedies, "wavemamba's docs/migrate.md lists what is there")
            raise ModuleNotFoundError(f"{fullname}: not offered by wavemamba.compat; {remedy}", name=fullname)


LAST_FINDER = NotOffered()


def install(*packages: str) -> None:
    """Make `import mamba_ssm` and `import causal_conv1d`, with all their sub-modules, give wavemamba's.

    Also the compiled modules that forks import themselves: `selective_scan_cuda`, `selective_scan_cuda_core`,
    `selective_scan_cuda_oflex`. A package that is there but lacks its compiled part is put aside in this process.

    Args:
        *packages: "mamba_ssm", "causal_conv1d"; none: both.

    Raises:
        ConfigError: a package is installed and works, or has another name.
    """
    check_names(packages, list(PACKAGES), "package")
    wanted = packages or tuple(PACKAGES)
    for package in wanted:
        if _works(package):
            raise ConfigError(
                f"{package}: expected a package that is missing or lacks {PACKAGES[package]}, but it works; "
                f"uninstall it, or use wavemamba.compat.{package} by its own name"
            )
    for package in wanted:
        uninstall(package)
        ours = importlib.import_module(f"wavemamba.compat.{package}")
        sys.modules[package] = ours
        for found in pkgutil.walk_packages(ours.__path__, f"wavemamba.compat.{package}."):
            module = importlib.import_module(found.name)
            sys.modules[found.name.removeprefix("wavemamba.compat.")] = module
        for name in COMPILED[package]:
            sys.modules[name] = importlib.import_module(f"wavemamba.compat.{name}")
    if LAST_FINDER not in sys.meta_path:
        sys.meta_path.append(LAST_FINDER)


def uninstall(*packages: str) -> None:
    """Take the names away again; what was imported from them before goes on working.

    Args:
        *packages: "mamba_ssm", "causal_conv1d"; none: both.
    """
    check_names(packages, list(PACKAGES), "package")
    for package in packages or tuple(PACKAGES):
        names = (package, PACKAGES[package], *COMPILED[package])
        for name in [known for known in sys.modules if known in names or known.startswith(f"{package}.")]:
            del sys.modules[name]
    if LAST_FINDER in sys.meta_path and not any(_is_ours(sys.modules.get(package)) for package in PACKAGES):
        sys.meta_path.remove(LAST_FINDER)


def _works(package: str) -> bool:
    """Whether the real package has its compiled part."""
    compiled = PACKAGES[package]
    if any(_is_ours(sys.modules.get(name)) for name in (package, compiled)):
        return False
    if importlib.util.find_spec(package) is None or importlib.util.find_spec(compiled) is None:
        return False
    try:
        importlib.import_module(compiled)
    except (ImportError, OSError):  # built for another torch, or without its CUDA libraries
        return False
    return True


def _is_ours(module: ModuleType | None) -> bool:
    return module is not None and module.__name__.startswith("wavemamba.")
