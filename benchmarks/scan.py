"""The selective scan on a CPU, forward and forward + backward, beside what a user would run instead.

Compared in one run, in random order: this library's kernel; the sequential loop over the steps in the layout and with
the materialised exponentials of mamba-ssm's reference (written anew here: that package does not install without CUDA);
mambapy's parallel scan (`pip install mambapy`; skipped where absent); and, as a yardstick of the machine, `torch.exp`
over the B * L * E * N elements that any scan has to exponentiate, once into new and once into existing memory. Medians
over rounds, each case warmed up right before it is timed; all of it several times, with the range of the ratios.

python benchmarks/scan.py
python benchmarks/scan.py --batch 1 --rounds 30 --memory-length 512
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import multiprocessing
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import refuse_wrong, report, time_cases
from torch import Tensor

from wavemamba import ops

TOLERANCE = 5e-7  # relative L2 against float64, output and every gradient
LIMITS = {
    "forward": {"exp": 0.65, "loop": 30.0, "pscan": None},
    "step": {"exp": 2.2, "loop": 30.0, "pscan": {1: 10.0, 4: 25.0}},
}
MEMORY_LIMITS = {"forward": 2.2, "step": 5.5}  # activations of B * L * E floats

Scan = Callable[[dict[str, Tensor]], Tensor]


def make_inputs(
    batch: int, length: int, width: int, states: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """What a Mamba block feeds its scan at the start of training."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    step = torch.exp(torch.rand(width, generator=generator) * 4.6 - 6.9)  # log-uniform in [1e-3, 1e-1]
    inputs = {
        "u": normal(batch, length, width),
        "delta": 0.3 * normal(batch, length, width),
        "A": -torch.arange(1.0, states + 1).repeat(width, 1),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": torch.ones(width),
        "z": normal(batch, length, width),
        "delta_bias": step + torch.log(-torch.expm1(-step)),
    }
    return {name: value.to(dtype) for name, value in inputs.items()}


def ours(inputs: dict[str, Tensor], backend: str = "numba") -> Tensor:
    return ops.selective_scan(**inputs, delta_softplus=True, backend=backend)


def channels_first(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sequences as (B, channels, L), the layout of mamba-ssm: what its users have, so not part of what is timed."""
    return {name: value.mT.contiguous() if value.dim() == 3 else value for name, value in inputs.items()}


def loop(inputs: dict[str, Tensor], unbind: bool) -> Tensor:
    """The recurrence step by step on `channels_first` inputs, all exponentials and drives formed beforehand."""
    u, B, C = inputs["u"], inputs["B"], inputs["C"]
    delta = F.softplus(inputs["delta"] + inputs["delta_bias"][:, None])
    decay = torch.exp(torch.einsum("bel,en->beln", delta, inputs["A"]))
    drive = torch.einsum("bel,bnl,bel->beln", delta, B, u)
    state = decay.new_zeros(decay.shape[0], decay.shape[1], decay.shape[3])
    outputs = []
    if unbind:  # autograd writes a whole tensor of zeros for every slice that is taken by an index
        slices = zip(decay.unbind(2), drive.unbind(2), C.unbind(2), strict=True)
    else:
        slices = ((decay[:, :, i], drive[:, :, i], C[:, :, i]) for i in range(decay.shape[2]))
    for decay_i, drive_i, C_i in slices:
        state = decay_i * state + drive_i
        outputs.append(torch.einsum("ben,bn->be", state, C_i))
    y = torch.stack(outputs, dim=2) + inputs["D"][:, None] * u
    return y * F.silu(inputs["z"])


def parallel_scan(inputs: dict[str, Tensor]) -> Tensor:
    """mambapy's scan, in the arithmetic around it that its Mamba block has."""
    from mambapy.pscan import pscan

    delta = F.softplus(inputs["delta"] + inputs["delta_bias"])
    decay = torch.exp(delta.unsqueeze(-1) * inputs["A"])
    drive = delta.unsqueeze(-1) * inputs["B"].unsqueeze(2) * inputs["u"].unsqueeze(-1)
    states = pscan(decay, drive)
    y = (states @ inputs["C"].unsqueeze(-1)).squeeze(3) + inputs["D"] * inputs["u"]
    return y * F.silu(inputs["z"])


def forward_and_backward(scan: Scan, inputs: dict[str, Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    y = scan(leaves)
    return (y.detach(), *torch.autograd.grad(y, list(leaves.values()), dy))


def arguments(contender: str, inputs: dict[str, Tensor], dy: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    return (channels_first(inputs), dy.mT.contiguous()) if contender == "loop" else (inputs, dy)


def check(scans: dict[str, Scan], inputs: dict[str, Tensor], dy: Tensor) -> dict[str, float]:
    """Compare every contender with float64; returns this library's error by tensor."""
    exact = {name: value.double() for name, value in inputs.items()}
    expected = forward_and_backward(functools.partial(ours, backend="reference"), exact, dy.double())
    names = ("y", *inputs)
    errors: dict[str, float] = {}
    for contender, scan in scans.items():
        results = forward_and_backward(scan, *arguments(contender, inputs, dy))
        if contender == "loop":
            results = tuple(value.mT if value.dim() == 3 else value for value in results)
        for name, result, truth in zip(names, results, expected, strict=True):
            tolerance = TOLERANCE if contender == "wavemamba" else 1e-4
            error = refuse_wrong(f"{contender}, {name}", result, truth, tolerance)
            if contender == "wavemamba":
                errors[name] = error
    return errors


def contenders() -> dict[str, Scan]:
    scans: dict[str, Scan] = {"wavemamba": ours, "loop": functools.partial(loop, unbind=True)}
    if importlib.util.find_spec("mambapy") is not None:
        scans["pscan"] = parallel_scan
    return scans


def problem(batch: int, options: argparse.Namespace) -> tuple[dict[str, Tensor], Tensor]:
    inputs = make_inputs(batch, options.length, options.width, options.states)
    return inputs, torch.randn(inputs["u"].shape, generator=torch.Generator().manual_seed(1))


def measure(batch: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    inputs, dy = problem(batch, options)
    scans = contenders()
    source = torch.randn(inputs["u"].numel() * options.states)
    target = torch.empty_like(source)
    yardsticks = {"exp": lambda: torch.exp(source, out=target), "exp, new memory": lambda: torch.exp(source)}

    @torch.no_grad()
    def forward(scan: Scan, inputs: dict[str, Tensor], dy: Tensor) -> Tensor:
        return scan(inputs)

    rows = []
    for what in ("forward", "step"):
        cases: dict[str, Callable[[], Any]] = dict(yardsticks)
        for name, scan in scans.items():
            run = forward if what == "forward" else forward_and_backward
            if name == "loop":
                scan = functools.partial(loop, unbind=what == "step")
            cases[name] = functools.partial(run, scan, *arguments(name, inputs, dy))
        slow = {name: cases.pop(name) for name in ("loop", "pscan") if name in cases}
        seconds = time_cases(cases, rounds=options.rounds, warm=True)
        # The slow ones take turns with the kernel in a run of their own: among fast cases they would heat and stall.
        slower = time_cases(slow | {"wavemamba": cases["wavemamba"]}, rounds=options.slow_rounds, warm=True)
        ours_alone = slower.pop("wavemamba")
        limit = LIMITS[what]
        pscan_limit = limit["pscan"].get(batch) if isinstance(limit["pscan"], dict) else None
        rows.append(
            {
                "batch": batch,
                "what": what,
                "ms": seconds["wavemamba"] * 1e3,
                "exp, ms": seconds["exp"] * 1e3,
                "of exp": seconds["wavemamba"] / seconds["exp"],
                "limit": limit["exp"],
                "of exp, new memory": seconds["wavemamba"] / seconds["exp, new memory"],
                "loop / ours": slower["loop"] / ours_alone,
                "at least": limit["loop"],
                "pscan / ours": slower["pscan"] / ours_alone if "pscan" in slower else None,
                "at least ": pscan_limit,
            }
        )
    return rows


def summarize(passes: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The median of every number over the passes, and the range of the ratios."""
    rows = []
    for same in zip(*passes, strict=True):
        row = {
            key: value if isinstance(value, str) else _median([r[key] for r in same]) for key, value in same[0].items()
        }
        for ratio in ("of exp", "loop / ours", "pscan / ours"):
            if row[ratio] is not None:
                row[f"{ratio}, range"] = [min(r[ratio] for r in same), max(r[ratio] for r in same)]
        rows.append(row)
    return rows


def _median(values: list[Any]) -> Any:
    return values[0] if None in values or len(set(values)) == 1 else statistics.median(values)


def peak_memory(length: int, width: int, states: int) -> dict[str, float]:
    """Extra resident memory at the peak, in activations of B * L * E floats; Linux only, in a process of its own.

    The inputs and the gradient that comes in are there before; the output and the gradients of the inputs count.
    """
    small = make_inputs(1, 8, width, states)
    forward_and_backward(ours, small, small["u"])  # loads the kernels
    inputs = make_inputs(1, length, width, states)
    dy = torch.randn(inputs["u"].shape)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}

    @torch.no_grad()
    def forward() -> Tensor:
        return ours(inputs)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ours(leaves), list(leaves.values()), dy)

    measured = {}
    for name, case in {"forward": forward, "step": step}.items():
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        before = _resident("VmRSS")
        case()
        measured[name] = (_resident("VmHWM") - before) / (4 * inputs["u"].numel())
    return measured


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in status if line.startswith(field)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=5, help="measure everything so many times; medians over them")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--slow-rounds", type=int, default=7, help="of the loop and of mambapy")
    parser.add_argument("--memory-length", type=int, default=16384, help="sequence of the memory measurement")
    parser.add_argument("--name", default="cpu-scan", help="of the JSON under benchmarks/results")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    ops.warm_up()
    if "pscan" not in contenders():
        print("mambapy is not installed: its rows are skipped")
    errors = {f"batch {batch}": check(contenders(), *problem(batch, options)) for batch in options.batch}
    passes = [[row for batch in options.batch for row in measure(batch, options)] for _ in range(options.passes)]
    with multiprocessing.get_context("spawn").Pool(1) as fresh:  # nothing freed that could be taken again
        memory = fresh.apply(peak_memory, (options.memory_length, options.width, options.states))
    print("largest relative error against float64:", f"{max(max(e.values()) for e in errors.values()):.2e}")
    for name, value in memory.items():
        print(f"extra memory, {name}: {value:.2f} activations (limit {MEMORY_LIMITS[name]})")
    settings = {key: value for key, value in vars(options).items() if key != "name"}
    report(options.name, summarize(passes), errors=errors, memory=memory, memory_limits=MEMORY_LIMITS, **settings)


if __name__ == "__main__":
    main()
