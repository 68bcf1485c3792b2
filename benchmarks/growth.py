"""Cost per token of everything public, from 256 to 65,536 tokens: every op, transform, scan order and block.

python benchmarks/growth.py
python benchmarks/growth.py --only "transform*" --longest 16384 --rounds 3

What costs more a token at the longest grid than twice its cost at 1,024 tokens is named. Attention, which compares all
pairs of tokens, is measured up to 4,096 and is named by right.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import refuse_wrong, report, time_cases
from torch import Tensor

import wavemamba
from wavemamba import ops
from wavemamba.layers.embeddings import resample_position
from wavemamba.ops.haar import LAYOUTS
from wavemamba.scans import expect_permutation, list_scan_orders

Run = Callable[[int], Callable[[], Tensor]]
"""From the grid's side to a call on that grid."""
DIM, STATE, LEVELS = 32, 16, 2
TRANSFORMS = ("haar", "dct", "db2", "sym8", "db10", "bior2.2")  # a wavelet of every kind and of 2 to 20 samples
ORDER_OPTIONS = {"window": {"window": 4}}
QUADRATIC = ("block: SharedAttention", "block: SpatialFrequencyFusion, cross", "block: DiMSUMBlock")
TWICE = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="names to measure, as a shell pattern")
    parser.add_argument("--longest", type=int, default=65536, help="tokens of the longest grid")
    parser.add_argument("--longest-attention", type=int, default=4096, help="where attention stops")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="cpu-growth-of-everything", help="of the JSON under benchmarks/results")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ops.warm_up()
    runs = {name: run for name, run in everything().items() if fnmatch.fnmatch(name, options.only)}
    rows = []
    for name, run in runs.items():
        check(name, run)
        longest = options.longest_attention if name in QUADRATIC else options.longest
        rows.append(measure(name, run, [16 * 2**k for k in range(9) if (16 * 2**k) ** 2 <= longest], options.rounds))
    report(options.name, rows, dim=DIM, state=STATE, levels=LEVELS, rounds=options.rounds)
    grown = [f"{row['name']} ({row['growth']:.1f} times)" for row in rows if row["growth"] > TWICE]
    print(f"costs more a token as the grid grows: {', '.join(grown) or 'nothing'}")


def everything() -> dict[str, Run]:
    """Every public op, transform, order and block by name."""
    runs: dict[str, Run] = {
        "op: selective_scan": selective_scan,
        "op: causal_conv1d": lambda side: step(
            lambda x, w: ops.causal_conv1d(x, w, activation="silu"), normal(1, side**2, DIM), normal(DIM, 4)
        ),
        "op: ssd_scan": ssd_scan,
        "op: gla_scan": gla_scan,
        "layer: resample_position": lambda side: step(
            lambda x: resample_position(x, 2 * side, 2 * side), normal(1, side, side, DIM)
        ),
        "scans: expect_permutation": permutation,
    }
    for layout in LAYOUTS:
        runs[f"op: to_haar_map, {layout}"] = map_step(lambda x, kind=layout: ops.to_haar_map(x, LEVELS, kind))
        runs[f"op: from_haar_map, {layout}"] = map_step(lambda x, kind=layout: ops.from_haar_map(x, LEVELS, kind))
    for name in TRANSFORMS:
        transform = wavemamba.frequency_transform(name, LEVELS)
        runs[f"transform: {name}, analysis"] = map_step(transform.analysis)
        runs[f"transform: {name}, synthesis"] = lambda side, t=transform: step(
            t.synthesis, normal(1, side // t.side, side // t.side, t.side**2, DIM)
        )
    for name in list_scan_orders():
        order = wavemamba.scan_order(name, **ORDER_OPTIONS.get(name, {}))
        runs[f"order: {order.name}"] = lambda side, o=order: lambda: torch.from_numpy(o.visits(side, side))
    blocks = {
        "MambaMixer": lambda: Flat(wavemamba.MambaMixer(DIM)),
        "SpatialMambaBlock": lambda: wavemamba.SpatialMambaBlock(DIM, scan="hilbert"),
        "WaveletMambaBlock": lambda: wavemamba.WaveletMambaBlock(DIM),
        "WaveletMambaBlock, db2": lambda: wavemamba.WaveletMambaBlock(DIM, transform="db2", levels=LEVELS),
        "SpatialFrequencyFusion, linear": lambda: Pair(wavemamba.SpatialFrequencyFusion(DIM, mode="linear")),
        "SpatialFrequencyFusion, cross": lambda: Pair(wavemamba.SpatialFrequencyFusion(DIM)),
        "SharedAttention": lambda: wavemamba.SharedAttention(DIM),
        "DiMSUMBlock": lambda: First(wavemamba.DiMSUMBlock(DIM)),
    }
    return runs | {f"block: {name}": map_step(make()) for name, make in blocks.items()}


class Flat(torch.nn.Module):
    """A mixer of sequences on a map."""

    def __init__(self, mixer: torch.nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.flatten(1, 2)).view_as(x)


class Pair(Flat):
    """A fusion on the two halves of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(*x.chunk(2, dim=-1))


class First(Flat):
    """A block that returns a residual too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x)[0]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def step(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Tensor]:
    """Forward and backward pass through every input."""
    leaves = [x.requires_grad_() for x in inputs]

    def call() -> Tensor:
        y = function(*leaves)
        return torch.autograd.grad(y.sum() + y.square().mean(), leaves[0])[0]

    return call


def map_step(function: Callable[[Tensor], Tensor]) -> Run:
    return lambda side: step(function, normal(1, side, side, DIM))


def selective_scan(side: int) -> Callable[[], Tensor]:
    x, delta, states = normal(1, side**2, DIM), 0.5 * normal(1, side**2, DIM), normal(1, side**2, STATE)
    A = -torch.rand(DIM, STATE) - 0.1
    return step(
        lambda x, delta, B, C: ops.selective_scan(x, delta, A, B, C, delta_softplus=True),
        x,
        delta,
        states,
        states.flip(1),
    )


def ssd_scan(side: int) -> Callable[[], Tensor]:
    heads = 4
    x, delta = normal(1, side**2, heads, DIM // heads), 0.5 * normal(1, side**2, heads)
    B, C = normal(1, side**2, 1, STATE), normal(1, side**2, 1, STATE).flip(1)
    A = -torch.rand(heads) - 0.1
    return step(lambda x, delta, B, C: ops.ssd_scan(x, delta, A, B, C, dt_softplus=True), x, delta, B, C)


def gla_scan(side: int) -> Callable[[], Tensor]:
    heads = 4
    values, keys = normal(1, side**2, heads, DIM // heads), normal(1, side**2, heads, STATE)
    return step(lambda q, k, v, g: ops.gla_scan(q, k, v, -g.abs()), keys, keys.flip(1), values, keys / 16)


def permutation(side: int) -> Callable[[], Tensor]:
    order = torch.randperm(side**2)
    return lambda: expect_permutation(order, side**2)


def check(name: str, run: Run) -> None:
    """Refuse what differs from the reference backends on the smallest grid."""
    call = run(16)
    actual = call()
    with ops.use_backend("reference"):
        refuse_wrong(name, actual, call(), 1e-4)


def measure(name: str, run: Run, sides: list[int], rounds: int) -> dict[str, Any]:
    """Microseconds and bytes a token on every grid, and by how much the dearer of both grows from 1,024 tokens on."""
    repeats = {side: max(1, 2048 // side**2) for side in sides}
    cases = {side: repeated(run(side), repeats[side]) for side in sides}
    seconds = time_cases(cases, rounds=rounds, warm=True)
    row: dict[str, Any] = {"name": name}
    times = {side: seconds[side] / (side**2 * repeats[side]) * 1e6 for side in sides}
    memory = {side: peak_bytes(cases[side]) / side**2 for side in sides}
    row |= {f"us a token, {side**2}": times[side] for side in sides}
    row |= {f"bytes a token, {side**2}": memory[side] for side in sides}
    base = sides[min(1, len(sides) - 1)]
    row["growth"] = times[sides[-1]] / times[base]
    if len(sides) > 3:  # the pages of the allocator hide what small grids take
        row["growth"] = max(row["growth"], memory[sides[-1]] / max(memory[sides[-2]], 64.0))
    return row


def repeated(call: Callable[[], Tensor], times: int) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def peak_bytes(call: Callable[[], None]) -> int:
    """Memory of the process at its highest during a call, above what it had before."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return max(_status("VmHWM") - before, 0)


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
