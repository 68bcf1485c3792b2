"""A process made ready to compute on a CPU: how many threads, how they wait, the memory that it keeps, who multiplies
its matrices."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from wavemamba.checks import expect_size
from wavemamba.ops.products import mkl_leaves_vectors_idle, use_wide_vectors

SPINS, POLICY, THREADS = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"
_BRIEF = "3000"
"""Looks of a waiting thread at what it waits for, before it sleeps: enough to bridge the gap between two operations of
a step. libgomp's own 300,000 make a step many times slower as soon as something else wants the cores."""
_WATCHED = 0.1
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST_KEPT = 2**31 - 1

Waiting = Literal["spinning", "sleeping", "as set", "as started"]


@dataclass(frozen=True)
class CpuSetup:
    """What `set_up_cpu` found or chose.

    Args:
        threads: threads of PyTorch's operations.
        waiting: how they wait for each other: "spinning" briefly, "sleeping", "as set" by the environment, or
            "as started", where the process could not start anew.
        keeps_memory: whether freed memory stays with the process.
        products: who multiplies matrices of float32: "PyTorch's" own library, or "oneDNN" and the kernel in its place.
    """

    threads: int
    waiting: Waiting
    keeps_memory: bool
    products: Literal["PyTorch's", "oneDNN"] = "PyTorch's"


def set_up_cpu(threads: int | None = None, *, keep_memory: bool = True, restart: bool = False) -> CpuSetup:
    """Make this process compute fast on a CPU.

    Call it first in a script, under `if __name__ == "__main__":`. It sets

    - the number of threads: no more than the cores that this process may use, by its affinity and its control group;
    - how threads wait for each other. Between two operations a thread that spins is there at once, one that sleeps has
      to be woken: on two idle cores a step of a small model takes 1.6 times longer. On cores that others use as well
      it is the other way round, and spinning costs more. So the machine is watched for a tenth of a second: threads
      spin, briefly, where as many cores are idle as there are threads. OpenMP reads this once, from `GOMP_SPINCOUNT`
      and `OMP_WAIT_POLICY`, when torch is loaded, so that the process has to start anew with the variable set;
      whoever sets one of them is left alone;
    - the memory that glibc hands back: none, so that the next step does not ask for the same pages again. The process
      then stays as large as it was at its largest;
    - who multiplies matrices of float32: oneDNN instead of MKL, and a kernel of this library where they are small, for
      all of PyTorch in this process, where the processor has AVX-512 and is not Intel's. MKL does not use it there, and
      takes more than twice as long. See `wavemamba.ops.products`.

    Results depend on it as they depend on the number of threads: in the order of sums.

    Args:
        threads: threads of PyTorch's operations; None: as many as there are usable cores, or `OMP_NUM_THREADS`.
        keep_memory: keep freed memory.
        restart: start this process anew, with the same arguments, where how threads wait is not yet chosen. All that
            it did so far is done again. Left out for one thread, in interactive sessions, in child processes and
            outside Linux.

    Raises:
        ConfigError: `threads` is no int >= 1.
    """
    if threads is not None:
        expect_size("threads", threads)
    chosen = threads or min(torch.get_num_threads(), usable_cores())
    waiting = _chosen_waiting()
    if waiting == "as started" and chosen > 1 and restart and _can_restart():
        idle = idle_cores() >= chosen - 0.25
        os.environ[SPINS] = _BRIEF if idle else "0"
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    torch.set_num_threads(chosen)
    onednn = mkl_leaves_vectors_idle() and use_wide_vectors()
    return CpuSetup(chosen, waiting, keep_memory and _keep_memory(), "oneDNN" if onednn else "PyTorch's")


def usable_cores(control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those of its affinity, or fewer where its control group has a share of time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _share_of_time(control_group)
    return cores if share is None else max(1, min(cores, round(share)))


def idle_cores() -> float:
    """Cores that did nothing while this was watching, for a tenth of a second; those of the whole machine."""
    before = _idle_time()
    begun = time.perf_counter()
    time.sleep(_WATCHED)
    passed = time.perf_counter() - begun
    return (_idle_time() - before) / passed


def _idle_time() -> float:
    ticks = Path("/proc/stat").read_text().split(None, 6)[4:6]  # of all cores: idle, and waiting for a disk
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _share_of_time(group: Path) -> float | None:
    """Cores' worth of time that a control group has, in version 2 or 1 of its files; None: no limit."""
    newer, older = ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
    try:
        files = newer if (group / newer[0]).exists() else older
        quota, period = " ".join((group / file).read_text() for file in files).split()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _chosen_waiting() -> Waiting:
    spins = os.environ.get(SPINS)
    if spins in (_BRIEF, "0") and POLICY not in os.environ:
        return "sleeping" if spins == "0" else "spinning"
    return "as started" if spins is None and POLICY not in os.environ else "as set"


def _can_restart() -> bool:
    interactive = hasattr(sys, "ps1") or sys.flags.interactive or "ipykernel" in sys.modules
    child = multiprocessing.parent_process() is not None
    return sys.platform == "linux" and not interactive and not child and sys.argv[0] not in ("", "-")


def _keep_memory() -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return False
    return all(mallopt(option, _MOST_KEPT) == 1 for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
