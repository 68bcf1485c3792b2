"""How a command runs: its environment, its errors, its exit status."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from wavemamba.errors import BackendUnavailable, WavemambaError
from wavemamba.files import printable
from wavemamba.machine import set_up_cpu


def exit_status(command: Callable[[], int | None]) -> int:
    """Run a command; its own status or 0, or 1 after an error that has a name, which is printed."""
    try:
        return _with_named_packages(command) or 0
    except (WavemambaError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1


def run_command(name: str) -> int:
    """Run `wavemamba.commands.<name>`, and return its exit status.

    A package that the command lacks is told like any other error, also where importing the command asks for it.
    """
    return exit_status(lambda: importlib.import_module(f"wavemamba.commands.{name}").main())


def run_module(name: str) -> None:
    """What `python -m wavemamba.NAME` does: set the process up for a CPU, then run and exit."""
    set_up_cpu(restart=True)
    sys.exit(run_command(name))


def _with_named_packages(command: Callable[[], int | None]) -> int | None:
    try:
        return command()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "wavemamba"):
            raise
        raise BackendUnavailable(
            f"expected the package {package!r} to be installed; pip install 'wavemamba[train]'"
        ) from error
