"""Kill a training run with SIGKILL at random moments and compare its end, bit by bit, with a run never killed.

    python benchmarks/kill_resume.py --kills 10

The moments are drawn over the whole life of a process: while it imports, between steps, while it writes a checkpoint
(one every third step). Compared are the exported weights, everything in the last checkpoint (model, EMA, optimiser,
loss scale, step, random states) and the logged losses. Exit status 1 where a single bit differs.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from wavemamba.training import Checkpoints, read_log

ROOT = Path(__file__).resolve().parents[1]
TRAINING = [
    *("--data=digits", "--set", "dim=16", "depth=2", "attention_every=2", "attention_heads=2", "fusion_heads=2"),
    *("drop_path_rate=0.2", "class_dropout=0.2", "--batch-size=16", "--accumulate=2", "--lr=1e-3", "--schedule=cosine"),
    *("--warmup=5", "--ema=0.99", "--save-every=3", "--log-every=1", "--threads=1", "--sample-steps=1", "--quiet"),
]


def start(options: list[str]) -> subprocess.Popen:
    """Start the training script in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / "train_dimsum.py"), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def options_of(out: Path, steps: int) -> list[str]:
    return [*TRAINING, f"--steps={steps}", f"--out={out}"]


def run_to_the_end(out: Path, steps: int, start=start) -> None:
    if status := start(options_of(out, steps)).wait():
        raise SystemExit(f"training in {out} ended with status {status}")


def last_step(out: Path) -> int:
    records = read_log(out / "log.jsonl")
    return records[-1]["step"] if records else 0


def kill_once(
    out: Path, steps: int, kills: int, rng: random.Random, start=start, starting: float = 3.0
) -> tuple[bool, int]:
    """Start the run and kill it at a random moment; whether it was still running, and the last step in its log.

    One time in five that is within the seconds of `starting`, otherwise shortly after a step. `kills` are still to
    come, this one among them: the steps that are left are shared out, so that the run does not end before the last.
    """
    begun = last_step(out)
    share = max(1, 2 * (steps - begun) // (2 * kills + 1))
    target = begun if rng.random() < 0.2 else begun + rng.randint(1, share)
    process = start(options_of(out, steps))
    if target == begun:
        time.sleep(rng.uniform(0.0, starting))
    while last_step(out) < target and process.poll() is None:
        time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 0.1))
    process.kill()
    return process.wait() == -9, last_step(out)


def differences(expected, found, where: str = "") -> list[str]:
    """Names of everything in two nested states that is not the same to the last bit."""
    if isinstance(expected, torch.Tensor):
        same = isinstance(found, torch.Tensor) and expected.dtype == found.dtype and torch.equal(expected, found)
        return [] if same else [where]
    if isinstance(expected, dict):
        if not isinstance(found, dict) or expected.keys() != found.keys():
            return [where]
        return [name for key in expected for name in differences(expected[key], found[key], f"{where}/{key}")]
    if isinstance(expected, (list, tuple)):
        if len(expected) != len(found):
            return [where]
        pairs = enumerate(zip(expected, found, strict=True))
        return [name for i, (a, b) in pairs for name in differences(a, b, f"{where}/{i}")]
    return [] if expected == found else [where]


def compare(reference: Path, survivor: Path) -> list[str]:
    found = []
    if (reference / "model/model.safetensors").read_bytes() != (survivor / "model/model.safetensors").read_bytes():
        found.append("model/model.safetensors")
    states = [Checkpoints(out / "checkpoints").load() for out in (reference, survivor)]
    found += differences(*states, where="checkpoint")
    logs = [read_log(out / "log.jsonl") for out in (reference, survivor)]
    return found + differences(*logs, where="log.jsonl")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="how often (default 10)")
    parser.add_argument("--steps", type=int, default=150, help="training steps (default 150)")
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: another one each time)")
    parser.add_argument("--folder", type=Path, help="where to (default: a temporary folder)")
    args = parser.parse_args()
    seed = random.randrange(10**6) if args.seed is None else args.seed
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        reference, survivor = folder / "reference", folder / "survivor"
        run_to_the_end(reference, args.steps)
        print(f"reference: {args.steps} steps, never killed; moments from seed {seed}", flush=True)
        for kill in range(args.kills):
            killed, step = kill_once(survivor, args.steps, args.kills - kill, rng)
            print(f"kill {kill + 1}: {'killed' if killed else 'had ended already'} after step {step}", flush=True)
        run_to_the_end(survivor, args.steps)
        found = compare(reference, survivor)
    if found:
        print(f"DIFFERENT after {args.kills} kills: {', '.join(found[:20])}")
        return 1
    print(f"the same to the last bit after {args.kills} kills: weights, EMA, optimiser, random states, log")
    return 0


if __name__ == "__main__":
    sys.exit(main())
