"""How a command runs: its environment, its errors, its exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from wavemamba.errors import WavemambaError
from wavemamba.training.writing import printable

WAIT_POLICY = "OMP_WAIT_POLICY"


def exit_status(command: Callable[[], None]) -> int:
    """Run a command; 0, or 1 after an error that has a name, which is printed."""
    try:
        command()
    except (WavemambaError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


def run_module(main: Callable[[], int]) -> None:
    """What `python -m wavemamba.NAME` does: wait passively, then run and exit.

    OpenMP's threads wait by spinning: two of them on a machine that does other things too would take many times longer.
    They read `OMP_WAIT_POLICY` when torch is loaded, which `python -m` has done already; hence the process starts anew
    with the variable set. Whoever sets it, to whatever, is left alone.
    """
    if WAIT_POLICY not in os.environ and os.name == "posix":
        os.environ[WAIT_POLICY] = "PASSIVE"
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    sys.exit(main())
