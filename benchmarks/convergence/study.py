"""Run the convergence study: every row of table.py that is not measured yet, the most important first.

    python benchmarks/convergence/study.py --list                 # what is measured and what is missing
    python benchmarks/convergence/study.py --minutes 120          # go on for two hours
    python benchmarks/convergence/study.py --only 'rivals-mnist-*'   # some rows
    python benchmarks/convergence/study.py --smoke                # five steps of every row, judged

Every run leaves a JSON and a log in results/, and is skipped once they are there. A run that is stopped (by --minutes,
Ctrl-C or a kill) goes on from its checkpoint with the same bits. Several of these may run side by side: a run that
another one is at is left to it. Then: cost.py for seconds and FLOPs a step, report.py for plots and docs/results.md.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from table import FULL, ROWS, SEEDS, SMOKE, Row, Run, Scale, final_runs, is_done, next_runs, read_results
from training import train

import wavemamba
from wavemamba.errors import ConfigError
from wavemamba.locks import FolderLock

HERE = Path(__file__).parent
SMOKE_RATE = 5e-3


def wanted(rows: list[Row], results: dict[str, dict[str, Any]], scale: Scale) -> list[Run]:
    """The runs that are missing and can be begun, in their order; of a smoke test one of each row.

    Rows that are compared with each other go side by side: first the learning rates of all, then seed by seed.
    """
    if scale is SMOKE:
        runs = [Run(row=row, rate=SMOKE_RATE, seed=SEEDS[0], steps=scale.steps) for row in rows]
        return [run for run in runs if not is_done(run, results)]
    sections = list(dict.fromkeys((row.group, row.data, row.path) for row in rows))

    def order(run: Run) -> tuple[int, int]:
        stage = 0 if run.steps == scale.rate_steps else 1 + SEEDS.index(run.seed)
        return sections.index((run.row.group, run.row.data, run.row.path)), stage

    return sorted((run for row in rows for run in next_runs(row, results, scale)), key=order)


def carry_out(run: Run, scale: Scale, options: argparse.Namespace, end: float) -> str:
    """Take a run to its end, or to that of the time: "finished", "diverged", "stopped"; "busy" in another process."""
    folder, begun = options.runs / run.key, time.monotonic()
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FolderLock(folder, patience=0.0))
        except ConfigError:
            return "busy"
        outcome = train(run, scale, folder / "training", options.results, end)
        print(f"{run.key}: {outcome} after {time.monotonic() - begun:.0f} s", flush=True)
        return outcome


def show(rows: list[Row], results: dict[str, dict[str, Any]]) -> None:
    """What is measured of every row."""
    for row in rows:
        runs = final_runs(row, results)
        rate = f"{runs[0].rate:g}" if runs else "to be found"
        done = sum(is_done(run, results) for run in runs)
        print(f"{row.key}: learning rate {rate}, {done} of {len(SEEDS)} seeds")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop in good order after so long")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="rows by their keys, as --list shows them")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; the bits depend on it")
    parser.add_argument("--list", action="store_true", help="say what is measured, and end")
    parser.add_argument("--smoke", action="store_true", help="five steps of every row; give it folders of its own")
    parser.add_argument("--results", type=Path, help="folder of the JSON")
    parser.add_argument("--runs", type=Path, help="folder of the checkpoints")
    options = parser.parse_args(arguments)
    options.runs = options.runs or Path("runs/convergence-smoke" if options.smoke else "runs/convergence")
    options.results = options.results or (options.runs / "results" if options.smoke else HERE / "results")
    scale = SMOKE if options.smoke else FULL
    rows = [row for row in ROWS if fnmatchcase(row.key, options.only)]
    if options.list:
        show(rows, read_results(options.results))
        return 0
    wavemamba.set_up_cpu(options.threads, restart=True)
    end = time.monotonic() + 60 * options.minutes
    outcome = "finished"
    while outcome in ("finished", "diverged"):  # else the time is over, all is measured, or others are at what is left
        outcomes = (carry_out(run, scale, options, end) for run in wanted(rows, read_results(options.results), scale))
        outcome = next((found for found in outcomes if found != "busy"), "nothing")
    print({"nothing": "nothing is left to begin here"}.get(outcome, "the same command goes on"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
