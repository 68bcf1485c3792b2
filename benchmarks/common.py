"""What every benchmark shares: the machine, fair timing, and results as a table and JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

Name = TypeVar("Name", bound=Hashable)
RESULTS = Path(__file__).parent / "results"
_TUNING = ("MALLOC_", "GLIBC_TUNABLES", "OMP_", "GOMP_", "KMP_", "THP_MEM", "PYTORCH_", "LD_PRELOAD")


def machine() -> dict[str, Any]:
    """Processor, accelerator, threads, versions, and what the environment tells memory and threads."""
    described: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    installed = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    packages = ("torch", "numba", "triton", "timm", "mamba-ssm", "causal-conv1d", "mambapy")
    described |= {name: installed[name] for name in packages if name in installed}
    if tuning := {name: value for name, value in os.environ.items() if name.startswith(_TUNING)}:
        described["environment"] = tuning
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        described["gpu"] = {"name": properties.name, "multiprocessors": properties.multi_processor_count}
    return described


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def refuse_wrong(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> float:
    """Relative L2 error; stops the benchmark where it exceeds the tolerance, because a wrong answer is not timed."""
    actual, expected = actual.detach().double(), expected.detach().double()
    error = float((actual - expected).norm() / expected.norm())
    if not error <= tolerance:
        raise SystemExit(f"{name}: relative error {error:.2e} exceeds {tolerance:.0e}; not timed")
    return error


def time_cases(
    cases: dict[Name, Callable[[], Any]],
    *,
    rounds: int = 7,
    seed: int = 0,
    warm: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, float]:
    """Seconds of each case (the median), all measured in one run, in a new random order every round.

    Neighbouring cases disturb each other through caches, frequency and idle threads; the random order spreads that
    evenly. Each case runs once before; with `warm` also once, untimed, right before every timed run, so that none pays
    for the caches that the case before it left. For one thread `clock=time.process_time` leaves out what the processor
    did for others meanwhile.
    """
    for case in cases.values():
        case()
    samples: dict[Name, list[float]] = {name: [] for name in cases}
    order, generator = list(cases), random.Random(seed)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            if warm:
                cases[name]()
            start = clock()
            cases[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            samples[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in samples.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as an aligned text table; what a row lacks stays empty."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    cells = [heads, *([_text(row.get(head, "")) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " - ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(name: str, rows: list[dict[str, Any]], out: Path | None = None, **settings: Any) -> None:
    """Print the table and write `results/<name>.json` with the machine and the settings."""
    print(table(rows))
    path = (out or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "machine": machine(), "settings": settings, "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {path}")
