"""Random calls of every op and transform against the definition in float64: outputs and every gradient.

    python benchmarks/fuzz.py --cases 5000             # bounded and seeded; ends with 1 where a case failed
    python benchmarks/fuzz.py --seed 0 --case 1234     # one case again; a failing one prints this line

Shapes from empty and 1 on, strides (transposed, sliced from poisoned memory, expanded, lazily negative, lazily
conjugated), dtypes, optional parts, scan orders, packed sequences and backends are drawn; a share of the cases runs the
Triton kernels in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from common import table
from torch import Tensor

from wavemamba import WavemambaError
from wavemamba.ops import causal_conv1d, from_haar_map, gla_scan, selective_scan, ssd_scan, to_haar_map, use_backend
from wavemamba.transforms import frequency_transform

T = TypeVar("T")
Results = dict[str, Tensor]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference of an entry, as a part of 1 + the largest of the truth."""
LENGTHS = (1, 1, 2, 3, 5, 8, 13, 31, 32, 33, 70)
LAYOUTS = ("mosaic", "channel", "interleaved")


@dataclass
class Trial:
    op: str
    backend: str
    inputs: dict[str, Tensor]
    call: Callable[[dict[str, Tensor], str], Results]
    notes: dict[str, Any]

    def __str__(self) -> str:
        tensors = [f"{k} {str(v.dtype)[6:]}{tuple(v.shape)} strides {v.stride()}" for k, v in self.inputs.items()]
        return f"{self.op} {self.backend} {self.notes} {'; '.join(tensors)}"


class Draw:
    """Everything random about one case, from its seed and number alone."""

    def __init__(self, seed: int, case: int) -> None:
        self.random = random.Random(f"{seed}/{case}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(60))

    def one_of(self, choices: Sequence[T]) -> T:
        return self.random.choice(choices)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def dress(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The value in a dtype, laid out in some way that a caller's tensor may have."""
        value = value.to(dtype)
        style = self.one_of(("plain", "plain", "transposed", "sliced", "expanded", "negative", "conjugated"))
        if style == "transposed" and value.dim() > 1:
            first, second = self.random.sample(range(value.dim()), 2)
            return value.transpose(first, second).contiguous().transpose(first, second)
        if style == "sliced" and value.dim() > 0:
            large = torch.full([2 * size + 1 for size in value.shape], torch.nan, dtype=dtype)
            view = large[tuple(slice(1, None, 2) for _ in value.shape)]
            view.copy_(value)
            return view
        if style == "expanded" and value.dim() > 0:
            side = self.random.randrange(value.dim())
            if value.shape[side] > 0:
                return value.narrow(side, 0, 1).expand(value.shape)
        if style == "negative":
            return torch._neg_view(-value)
        if style == "conjugated" and dtype in (torch.float32, torch.float64):
            return torch.complex(torch.zeros_like(value), -value).conj().imag
        return value

    def order(self, length: int) -> Tensor | None:
        if self.chance(0.5):
            return None
        order = torch.randperm(length, generator=self.generator)
        return order.int() if self.chance(0.3) else order

    def seq_idx(self, batch: int, length: int) -> Tensor | None:
        if self.chance(0.6):
            return None
        numbers = torch.randint(0, self.one_of((1, 2, 4)), (batch, length), generator=self.generator)
        numbers = numbers.cumsum(1) if self.chance(0.5) else numbers
        return numbers.int() if self.chance(0.3) else numbers

    def dtypes(self, names: Sequence[str], backend: str) -> dict[str, torch.dtype]:
        choices = [torch.float32, torch.float32, torch.bfloat16, torch.float16]
        if backend in ("torch", "reference"):
            choices.append(torch.float64)
        common = self.one_of(choices)
        mixed = self.chance(0.2) and common != torch.float64
        return {name: self.one_of(choices[1:4]) if mixed else common for name in names}


def draw_scan(draw: Draw, backend: str) -> Trial:
    small = backend == "triton"
    batch, length = draw.one_of((0, 1, 1, 2, 3)), draw.one_of(LENGTHS[:6] if small else LENGTHS)
    groups, states = draw.one_of((1, 1, 2, 3)), draw.one_of((1, 2, 3, 4, 7, 16))
    width = groups * draw.one_of((1, 2, 5) if small else (1, 2, 5, 16, 31, 33, 130))
    row, softplus = (batch, length, width), draw.chance(0.7)
    values = {"u": draw.normal(*row), "delta": draw.normal(*row), "A": -draw.normal(width, states).abs() - 0.1}
    values |= {name: draw.normal(batch, length, groups, states) for name in "BC"}
    if groups == 1 and draw.chance(0.5):
        values |= {name: values[name].squeeze(2) for name in "BC"}
    optional = {"D": (width,), "z": row, "delta_bias": (width,), "initial_state": (batch, width, states)}
    values |= {name: draw.normal(*shape) for name, shape in optional.items() if draw.chance(0.6)}
    if not softplus:  # a negative step lets the states grow, and errors with them
        values |= {name: values[name].abs() for name in ("delta", "delta_bias") if name in values}
    dtypes = draw.dtypes(list(values), backend)
    inputs = {name: draw.dress(value, dtypes[name]) for name, value in values.items()}
    if not softplus:
        inputs |= {k: v.abs() for k, v in inputs.items() if k in ("delta", "delta_bias")}
    options = {"order": draw.order(length), "seq_idx": draw.seq_idx(batch, length), "delta_softplus": softplus}

    def call(inputs: dict[str, Tensor], backend: str) -> Results:
        y, last = selective_scan(**inputs, **options, return_last_state=True, backend=backend)
        return {"y": y, "last_state": last}

    return Trial("scan", backend, inputs, call, _told(options))


def draw_ssd(draw: Draw, backend: str) -> Trial:
    backend = "reference" if backend == "reference" else "torch"  # it has no kernels of its own
    batch, length = draw.one_of((0, 1, 1, 2, 3)), draw.one_of(LENGTHS)
    groups, states, width = draw.one_of((1, 1, 2, 3)), draw.one_of((1, 2, 7, 16)), draw.one_of((1, 2, 5, 16))
    heads = groups * draw.one_of((1, 2, 3))
    row = (batch, length, heads, width)
    values = {"x": draw.normal(*row), "dt": draw.normal(*row[:3]), "A": -draw.normal(heads).abs() - 0.1}
    values |= {name: draw.normal(batch, length, groups, states) for name in "BC"}
    optional = {"D": draw.one_of(((heads,), (heads, width))), "z": row, "dt_bias": (heads,)}
    optional["initial_state"] = (batch, heads, width, states)
    values |= {name: draw.normal(*shape) for name, shape in optional.items() if draw.chance(0.6)}
    dtypes = draw.dtypes(list(values), backend)
    inputs = {name: draw.dress(value, dtypes[name]) for name, value in values.items()}
    softplus = draw.chance(0.7)
    options: dict[str, Any] = {"dt_softplus": softplus, "seq_idx": draw.seq_idx(batch, length)}
    options["dt_limit"] = draw.one_of(((0.0, float("inf")), (0.0, 1.0)))  # a negative step lets the states grow
    options["chunk_size"] = draw.one_of((1, 2, 5, 16, 64))

    def call(inputs: dict[str, Tensor], backend: str) -> Results:
        y, last = ssd_scan(**inputs, **options, return_last_state=True, backend=backend)
        return {"y": y, "last_state": last}

    return Trial("ssd", backend, inputs, call, _told(options))


def draw_gla(draw: Draw, backend: str) -> Trial:
    backend = "reference" if backend == "reference" else "torch"
    batch, length, heads = draw.one_of((0, 1, 1, 2, 3)), draw.one_of(LENGTHS), draw.one_of((1, 2, 3))
    keys, width = draw.one_of((1, 2, 7, 16)), draw.one_of((1, 2, 5, 16))
    values = {name: draw.normal(batch, length, heads, keys) for name in ("q", "k", "log_decay")}
    values["log_decay"] = -values["log_decay"].abs() * draw.one_of((0.0, 0.1, 1.0, 40.0))
    values["v"] = draw.normal(batch, length, heads, width)
    if draw.chance(0.6):
        values["initial_state"] = draw.normal(batch, heads, keys, width)
    dtypes = draw.dtypes(list(values), backend)
    inputs = {name: draw.dress(value, dtypes[name]) for name, value in values.items()}
    options = {"seq_idx": draw.seq_idx(batch, length), "chunk_size": draw.one_of((1, 2, 5, 16, 64))}

    def call(inputs: dict[str, Tensor], backend: str) -> Results:
        y, last = gla_scan(**inputs, **options, return_last_state=True, backend=backend)
        return {"y": y, "last_state": last}

    return Trial("gla", backend, inputs, call, _told(options))


def draw_conv(draw: Draw, backend: str) -> Trial:
    small = backend == "triton"
    batch, length = draw.one_of((0, 1, 1, 2, 3)), draw.one_of(LENGTHS[:7] if small else LENGTHS)
    width, channels = draw.one_of((1, 2, 3, 4, 7)), draw.one_of((1, 2, 5, 17) if small else (1, 2, 31, 33, 130))
    values = {"x": draw.normal(batch, length, channels), "weight": draw.normal(channels, width)}
    optional = {"bias": (channels,), "initial_state": (batch, width - 1, channels)}
    values |= {name: draw.normal(*shape) for name, shape in optional.items() if draw.chance(0.6)}
    dtypes = draw.dtypes(list(values), backend)
    inputs = {name: draw.dress(value, dtypes[name]) for name, value in values.items()}
    options: dict[str, Any] = {"order": draw.order(length), "seq_idx": draw.seq_idx(batch, length)}
    options["activation"] = draw.one_of((None, "silu", "swish"))

    def call(inputs: dict[str, Tensor], backend: str) -> Results:
        y, last = causal_conv1d(**inputs, **options, return_last_state=True, backend=backend)
        return {"y": y, "last_state": last}

    return Trial("conv", backend, inputs, call, _told(options))


def _map(draw: Draw, side: int, backend: str) -> dict[str, Tensor]:
    """A map whose sides are sometimes no multiple of `side`: then every backend must refuse it alike."""
    height, width = (side * draw.one_of((1, 2, 3)) + draw.one_of((0,) * 12 + (1,)) for _ in range(2))
    x = draw.normal(draw.one_of((0, 1, 2)), height, width, draw.one_of((1, 3, 16, 33, 64)))
    return {"x": draw.dress(x, draw.dtypes(["x"], backend)["x"])}


def draw_haar(draw: Draw, backend: str) -> Trial:
    levels, layout = draw.one_of((0, 1, 2, 3)), draw.one_of(LAYOUTS)
    function = draw.one_of((to_haar_map, from_haar_map))

    def call(inputs: dict[str, Tensor], backend: str) -> Results:
        return {"y": function(inputs["x"], levels, layout, backend=backend)}

    notes = {"levels": levels, "layout": layout, "function": function.__name__}
    return Trial("haar", backend, _map(draw, 2**levels, backend), call, notes)


def draw_transform(draw: Draw, backend: str) -> Trial:
    name, levels = draw.one_of(("haar", "dct", "db2", "sym4", "bior2.2")), draw.one_of((0, 1, 2))
    transform, layout = frequency_transform(name, levels), draw.one_of(LAYOUTS)

    def call(inputs: dict[str, Tensor], backend: str) -> Results:
        with use_backend(backend):
            bands = transform.analysis(inputs["x"])
            return {
                "bands": bands,
                "map": transform.to_map(inputs["x"], layout),
                "x": transform.synthesis(bands),
                "x from map": transform.from_map(transform.to_map(inputs["x"], layout), layout),
            }

    notes = {"name": name, "levels": levels, "layout": layout}
    return Trial("transform", backend, _map(draw, 2**levels, backend), call, notes)


def _told(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in options.items() if v is not None}


DRAWS: dict[str, Callable[[Draw, str], Trial]] = {
    "scan": draw_scan,
    "ssd": draw_ssd,
    "gla": draw_gla,
    "conv": draw_conv,
    "haar": draw_haar,
    "transform": draw_transform,
}


def draw_trial(seed: int, case: int, triton: float) -> Trial:
    draw = Draw(seed, case)
    backend = "triton" if draw.chance(triton) else draw.one_of(("numba", "numba", "torch", "reference"))
    return DRAWS[draw.one_of(("scan", "scan", "ssd", "gla", "conv", "conv", "haar", "transform"))](draw, backend)


def evaluate(trial: Trial, inputs: dict[str, Tensor], backend: str) -> Results | str:
    """Outputs and gradients by name; the error's name where the library refuses."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    try:
        results = trial.call(leaves, backend)
    except WavemambaError as error:
        return type(error).__name__
    generator = torch.Generator().manual_seed(0)
    flowing = [torch.randn(r.shape, generator=generator).bfloat16().to(r.dtype) for r in results.values()]
    gradients = torch.autograd.grad(list(results.values()), list(leaves.values()), flowing, allow_unused=True)
    return results | {
        f"d{name}": torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def judge(trial: Trial) -> tuple[float, str]:
    """The worst error as a part of what is allowed, and where it is; beyond 1 the case has failed."""
    exact = {name: tensor.detach().double().resolve_neg().clone() for name, tensor in trial.inputs.items()}
    truth = evaluate(trial, exact, "reference")
    results = evaluate(trial, trial.inputs, trial.backend)
    if isinstance(truth, str) or isinstance(results, str):
        both = [value if isinstance(value, str) else "an answer" for value in (results, truth)]
        return (0.0, "refused") if both[0] == both[1] else (float("inf"), f"{both[0]} instead of {both[1]}")
    tolerance = max(TOLERANCE[t.dtype] for t in (*trial.inputs.values(), *results.values()))
    errors = {name: _difference(results[name], expected) / tolerance for name, expected in truth.items()}
    where = max(errors, key=lambda name: errors[name])
    return errors[where], where


@torch.no_grad()
def _difference(result: Tensor, expected: Tensor) -> float:
    if result.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    difference = float((result.double() - expected).abs().max() / (1 + expected.abs().max()))
    return float("inf") if difference != difference else difference


def run(seed: int, cases: Sequence[int], triton: float) -> list[str]:
    """Judge cases, print a line a failure and a summary; returns the failures."""
    failures: list[str] = []
    counts: Counter[tuple[str, str, str]] = Counter()
    worst: dict[tuple[str, str], float] = {}
    begin = time.monotonic()
    for case in cases:
        trial = draw_trial(seed, case, triton)
        key = (trial.op, trial.backend)
        try:
            error, where = judge(trial)
        except Exception as raised:  # what another library raises is a failure too
            error, where = (
                float("inf"),
                f"{type(raised).__name__}: {str(raised).splitlines()[0] if str(raised) else ''}",
            )
        counts[(*key, "refused" if where == "refused" else "cases")] += 1
        if not error <= 1:
            counts[(*key, "failed")] += 1
            again = f"python benchmarks/fuzz.py --seed {seed} --case {case} --triton {triton:g}"
            failures.append(f"{again}    # {where}, {error:.2g} of what is allowed: {trial}")
            print(failures[-1][:600], flush=True)
        else:
            worst[key] = max(worst.get(key, 0.0), error)
    rows = []
    for key in sorted({name[:2] for name in counts}):
        numbers = {head: counts[(*key, head)] for head in ("cases", "refused", "failed")}
        rows.append({"op": key[0], "backend": key[1], **numbers, "worst of allowed": worst.get(key, 0.0)})
    print(table(rows))
    print(f"{len(cases)} cases of seed {seed} in {time.monotonic() - begin:.0f} s, {len(failures)} failed")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this one alone")
    parser.add_argument("--triton", type=float, default=0.01, help="share of cases in Triton's interpreter")
    options = parser.parse_args()
    if options.triton > 0:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported, at their first use
    cases = range(options.cases) if options.case is None else [options.case]
    raise SystemExit(1 if run(options.seed, cases, options.triton) else 0)


if __name__ == "__main__":
    main()
