"""Cost per token from 256 to 65,536 tokens: of every op, transform, scan order and block, and of whole models.

python benchmarks/growth.py --only "[!m]*"
python benchmarks/growth.py --only "model*" --name cpu-growth-of-models --threads 1 --rounds 3
python benchmarks/growth.py --only "transform*" --longest 16384 --rounds 3

What costs more a token at the longest grid than twice its cost at 1,024 tokens is named; of models, what costs 15% more
than at 256 tokens. A model is made for 256 tokens, has its blocks recomputed in the backward pass, and reads as many
images at once as have the tokens of one on the longest grid, so that all that differs is how the tokens hang together.
Attention, which compares all pairs of tokens, is measured up to 4,096 and is named by right. With one thread seconds
are those of the processor, so that other work on the machine counts for little.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import re
import time
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

Run = Callable[[int, int], Callable[[], Tensor]]
"""From the grid's side and a number of grids to a call on so many."""
DIM, STATE, LEVELS = 32, 16, 2
TRANSFORMS = ("haar", "dct", "db2", "sym8", "db10", "bior2.2")  # a wavelet of every kind and of 2 to 20 samples
ORDER_OPTIONS = {"window": {"window": 4}}
MODEL = {"dim": 64, "depth": 4, "attention_every": 2, "attention_heads": 4, "fusion_heads": 4, "num_classes": 10}
KINDS: dict[str, dict[str, Any]] = {
    "attention in windows": {"fusion": "window", "attention": "window"},
    "linear attention": {"fusion": "linear_attention", "attention": "linear_attention"},
    "no attention": {"fusion": "linear", "attention_every": 0, "depth": 5},
    "full attention": {},
}
QUADRATIC = (
    "block: AttentionMixer",
    "block: SharedAttention",
    "block: SpatialFrequencyFusion, cross",
    "block: DiMSUMBlock",
    "model: full attention, forward",
    "model: full attention, step",
)
FEW = 2048  # tokens of a call, in one grid or several in turn
TWICE, ALIKE = 2.0, 1.15


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
    clock = time.process_time if options.threads == 1 else time.perf_counter
    rows = []
    for name, run in {**everything(), **models()}.items():
        if not fnmatch.fnmatch(name, options.only):
            continue
        check(name, run)
        longest = options.longest_attention if name in QUADRATIC else options.longest
        sides = [16 * 2**k for k in range(9) if (16 * 2**k) ** 2 <= longest]
        tokens = options.longest if name in models() else FEW
        rows.append(measure(name, run, sides, tokens, rounds=options.rounds, clock=clock))
    settings = {"rounds": options.rounds, "clock": clock.__name__, "model": MODEL}
    report(options.name, rows, dim=DIM, state=STATE, levels=LEVELS, **settings)
    for many, most in ((False, TWICE), (True, ALIKE)):
        grown = [row for row in rows if (row["name"] in models()) == many and row["growth"] > most]
        said = ", ".join(f"{row['name']} ({row['growth']:.2f} times)" for row in grown)
        print(f"costs more than {most} times as much a token as the grid grows: {said or 'nothing'}")


def everything() -> dict[str, Run]:
    """Every public op, transform, order and block by name."""
    runs: dict[str, Callable[[int], Callable[[], Tensor]]] = {
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
        "Mamba2Mixer": lambda: Flat(wavemamba.Mamba2Mixer(DIM)),
        "GLAMixer": lambda: Flat(wavemamba.GLAMixer(DIM)),
        "AttentionMixer": lambda: Flat(wavemamba.AttentionMixer(DIM)),
        "SpatialMambaBlock": lambda: wavemamba.SpatialMambaBlock(DIM, scan="hilbert"),
        "WaveletMambaBlock": lambda: wavemamba.WaveletMambaBlock(DIM),
        "WaveletMambaBlock, db2": lambda: wavemamba.WaveletMambaBlock(DIM, transform="db2", levels=LEVELS),
        "SpatialFrequencyFusion, linear": lambda: Pair(wavemamba.SpatialFrequencyFusion(DIM, mode="linear")),
        "SpatialFrequencyFusion, cross": lambda: Pair(wavemamba.SpatialFrequencyFusion(DIM)),
        "SpatialFrequencyFusion, window": lambda: Pair(wavemamba.SpatialFrequencyFusion(DIM, mode="window")),
        "SpatialFrequencyFusion, linear attention": lambda: Pair(
            wavemamba.SpatialFrequencyFusion(DIM, mode="linear_attention")
        ),
        "SharedAttention": lambda: wavemamba.SharedAttention(DIM),
        "SharedAttention, window": lambda: wavemamba.SharedAttention(DIM, mode="window"),
        "SharedAttention, linear attention": lambda: wavemamba.SharedAttention(DIM, mode="linear_attention"),
        "DiMSUMBlock": lambda: First(wavemamba.DiMSUMBlock(DIM)),
    }
    runs |= {f"block: {name}": map_step(make()) for name, make in blocks.items()}
    return {name: in_turn(run) for name, run in runs.items()}


def models() -> dict[str, Run]:
    """Whole models by name: the forward pass, and a training step."""
    return {
        f"model: {kind}, {what}": lambda side, images, o=options, t=what == "step": model_run(o, t, side, images)
        for kind, options in KINDS.items()
        for what in ("forward", "step")
    }


def model_run(options: dict[str, Any], training: bool, side: int, images: int) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    model = wavemamba.create_model("dimsum_tiny", img_size=32, **{**MODEL, **options}).train(training)
    model.set_grad_checkpointing()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    inputs = normal(images, 4, 2 * side, 2 * side), torch.full((images,), 0.5), torch.zeros(images, dtype=torch.int64)

    def forward() -> Tensor:
        with torch.inference_mode():
            return model(*inputs)

    def step() -> Tensor:
        model.zero_grad()
        model(*inputs).square().mean().backward()
        return model.patch_embed.proj.weight.grad

    return step if training else forward


def in_turn(run: Callable[[int], Callable[[], Tensor]]) -> Run:
    """One grid after the other."""

    def calls(side: int, grids: int) -> Callable[[], Tensor]:
        call = run(side)
        return lambda: [call() for _ in range(grids)][-1]

    return calls


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


def map_step(function: Callable[[Tensor], Tensor]) -> Callable[[int], Callable[[], Tensor]]:
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
    call = run(16, 1)
    actual = call()
    with ops.use_backend("reference"):
        refuse_wrong(name, actual, call(), 1e-4)


def measure(name: str, run: Run, sides: list[int], tokens: int, **timing: Any) -> dict[str, Any]:
    """Microseconds and bytes a token on every grid, in calls on `tokens` or one grid, and how the dearer of both grows.

    From 1,024 tokens on, where a call is one grid or a few; from 256 tokens on, where it is many at once.
    """
    counts = {side: max(1, tokens // side**2) for side in sides}
    cases = {side: run(side, counts[side]) for side in sides}
    seconds = time_cases(cases, warm=tokens == FEW, **timing)
    row: dict[str, Any] = {"name": name}
    times = {side: seconds[side] / (side**2 * counts[side]) * 1e6 for side in sides}
    memory = {side: peak_bytes(cases[side]) / (side**2 * counts[side]) for side in sides}
    row |= {f"us a token, {side**2}": times[side] for side in sides}
    row |= {f"bytes a token, {side**2}": memory[side] for side in sides}
    if tokens > FEW:
        row["growth"] = max(max(of.values()) / of[sides[0]] for of in (times, memory))
        return row
    row["growth"] = times[sides[-1]] / times[sides[min(1, len(sides) - 1)]]
    if len(sides) > 3:  # the pages of the allocator hide what small grids take
        row["growth"] = max(row["growth"], memory[sides[-1]] / max(memory[sides[-2]], 64.0))
    return row


def peak_bytes(call: Callable[[], Tensor]) -> int:
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
