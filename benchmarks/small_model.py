"""The training step of small models on the CPU: what threads, products, kernels and optimizer bring to it.

python benchmarks/small_model.py
python benchmarks/small_model.py --passes 1 --steps 10 --settings sleeping fused

Three models: that of the demo (64 wide, 16 tokens, batch 128), and a DiMSUM and a DiT of equal parameters (64 wide,
64 tokens, batch 64). Every setting runs in a process of its own, as threads and memory belong to the process:

sleeping     threads sleep between operations, products by MKL, PyTorch's own passes, AdamW tensor by tensor
spinning     threads spin, as OpenMP has it by itself
set-up       what set_up_cpu takes on an idle machine: threads spin briefly, freed memory stays, the faster products
one-pass     the same, and norms, gated GELUs and attention in one pass each, as the layers have them
fused        the same, and AdamW in one kernel, as the Trainer has it
compiled     the same, and every block compiled by itself

"products" are the step's own matrix products alone, see model.py; "times the first" says how many steps are taken in
the time of one of the first setting.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

SIZES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "demo": ("dimsum_tiny", 128, {"img_size": 8, "depth": 4, "attention_heads": 4, "fusion_heads": 4}),
    "dimsum": ("dimsum_tiny", 64, {"img_size": 16, "depth": 4, "attention_heads": 4, "fusion_heads": 4}),
    "dit": ("dit_s2", 64, {"img_size": 16, "depth": 7, "num_heads": 4, "variance": "none"}),
}
SHARED = {"dim": 64, "in_chans": 1, "num_classes": 10, "class_dropout": 0.1}
SETTINGS: dict[str, dict[str, str]] = {
    "sleeping": {"GOMP_SPINCOUNT": "0"},
    "spinning": {},
    "set-up": {"GOMP_SPINCOUNT": "3000"},
    "one-pass": {"GOMP_SPINCOUNT": "3000"},
    "fused": {"GOMP_SPINCOUNT": "3000"},
    "compiled": {"GOMP_SPINCOUNT": "3000"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="cpu-small-model", help="of the JSON under benchmarks/results")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "SETTING"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child, options.steps, options.threads)))
        return

    from common import report

    pairs = [(model, setting) for model in options.models for setting in options.settings]
    found: dict[tuple[str, str], list[dict[str, float]]] = {pair: [] for pair in pairs}
    for number in range(options.passes):
        for pair in pairs if number % 2 == 0 else reversed(pairs):
            found[pair].append(in_a_process(*pair, options))
    medians = {pair: {k: statistics.median(one[k] for one in runs) for k in runs[0]} for pair, runs in found.items()}
    rows = []
    for (model, setting), row in medians.items():
        beside = {"times the first": medians[model, options.settings[0]]["step ms"] / row["step ms"]}
        if ("dit", setting) in medians:
            beside["of the DiT"] = row["step ms"] / medians["dit", setting]["step ms"]
        rows.append({"model": model, "setting": setting, **row, **beside})
    report(options.name, rows, steps=options.steps, passes=options.passes, threads=options.threads)


def in_a_process(model: str, setting: str, options: argparse.Namespace) -> dict[str, float]:
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, __file__, "--child", model, setting]
    command += [f"--steps={options.steps}", f"--threads={options.threads}"]
    done = subprocess.run(command, env=clean | SETTINGS[setting], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(model_name: str, setting: str, steps: int, threads: int) -> dict[str, float]:
    """Milliseconds of a training step and of its parts, the medians, in this process."""
    import resource

    import torch
    from model import MatrixProducts, build, parameters_of

    import wavemamba

    if setting in ("sleeping", "spinning"):
        torch.set_num_threads(threads)
    else:
        wavemamba.set_up_cpu(threads)
    name, batch, overrides = SIZES[model_name]
    model = build(name, {**SHARED, **overrides}).train()
    fused = setting in ("fused", "compiled")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused or None)
    side = overrides["img_size"]
    x, t, y = torch.randn(batch, 1, side, side), torch.rand(batch), torch.randint(0, 10, (batch,))

    if setting in ("sleeping", "spinning", "set-up"):
        in_pytorchs_passes()

    def gradients() -> None:
        optimizer.zero_grad()
        (model(x, t, y) - x).square().mean().backward()

    with MatrixProducts() as products:
        gradients()
    if setting == "compiled":
        for block in model.blocks:
            block.compile(dynamic=False)
    begun = time.perf_counter()
    gradients()
    first = time.perf_counter() - begun
    timed: dict[str, list[float]] = {"gradients ms": [], "optimizer ms": [], "products ms": []}
    for _ in range(3):
        gradients()
        optimizer.step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        for what, run in (("gradients ms", gradients), ("optimizer ms", optimizer.step)):
            begun = time.perf_counter()
            run()
            timed[what].append(1e3 * (time.perf_counter() - begun))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    for _ in range(steps):
        begun = time.perf_counter()
        products.replay()
        timed["products ms"].append(1e3 * (time.perf_counter() - begun))
    row = {what: statistics.median(values) for what, values in timed.items()}
    return {
        "k parameters": parameters_of(model) / 1e3,
        "step ms": row["gradients ms"] + row["optimizer ms"],
        **row,
        "faults a step": faults / steps,
        "s to the first step": first,
        "GFLOP": products.flops / 1e9,
    }


def in_pytorchs_passes() -> None:
    """Run the plain text of the functions that have a kernel in `wavemamba.ops.fused`; the ops keep theirs."""
    from wavemamba.ops.fused import Fused

    Fused.__call__ = lambda function, *inputs: function.plain(*inputs)


if __name__ == "__main__":
    main()
