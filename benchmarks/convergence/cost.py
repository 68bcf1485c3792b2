"""Seconds and FLOPs of one training step of every model of the study, all in one run.

    python benchmarks/convergence/cost.py          # writes cost.json: the report multiplies it with the steps

A step is the loss, its gradient and the update, on one thread, as the study trains. The seconds are those of the
processor: what others do to the machine counts only as far as they share caches and memory with it. FLOPs are counted
by PyTorch's `FlopCounterMode`, in which this library's kernels have their formulas.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from pictures import load
from shared import report, time_cases
from table import FULL, ROWS, Row
from torch.utils.flop_counter import FlopCounterMode

import wavemamba
from wavemamba.diffusion import Objective
from wavemamba.ops import warm_up

HERE = Path(__file__).parent


def step_of(row: Row, batch_size: int, rate: float) -> tuple[Callable[[], object], int]:
    """One training step of a row on random pictures, and the parameters of its model."""
    parts = load(row.data)
    torch.manual_seed(0)
    channels, *size = parts.train.shape
    given = {"img_size": tuple(size), "in_chans": channels, "num_classes": len(parts.train.classes)}
    model = wavemamba.create_model(row.model, **given, **row.options).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)  # as the Trainer has it
    objective = Objective(row.path, "velocity")
    x, y = torch.randn(batch_size, channels, *size), torch.arange(batch_size) % len(parts.train.classes)

    def step() -> None:
        objective.loss(model, x, y=y).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="rows by their keys")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=FULL.batch_size)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of cost.json")
    options = parser.parse_args()
    wavemamba.set_up_cpu(1)
    warm_up()
    # What is asked is the cost of a step, whatever the path, the length and the learning rate of the runs.
    rows = list({(row.data, row.name): row for row in ROWS if fnmatchcase(row.key, options.only)}.values())
    steps = {row.key: step_of(row, options.batch_size, 1e-4) for row in rows}
    flops = {}
    for key, (step, _) in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        flops[key] = counter.get_total_flops()
    cases = {key: step for key, (step, _) in steps.items()}
    seconds = time_cases(cases, rounds=options.rounds, clock=time.process_time)
    measured = [
        {
            "data": row.data,
            "name": row.name,
            "seconds": seconds[row.key],
            "GFLOP": flops[row.key] / 1e9,
            "parameters": steps[row.key][1],
        }
        for row in rows
    ]
    report("cost", measured, options.out, batch_size=options.batch_size, rounds=options.rounds)


if __name__ == "__main__":
    main()
