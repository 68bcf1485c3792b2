"""The library on one NVIDIA GPU: first its GPU tests, then its ops and dimsum_l2 beside what a user would run instead.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --parts scan --skip-tests

- tests: `pytest tests/cuda` must pass before anything is timed.
- scan: forward and forward + backward against mamba-ssm's CUDA kernel, where that package is installed (in its own
  layout, and in scan order with the gathers that it needs there), and against this library's `torch` backend.
- others: the convolution against causal-conv1d, and the wavelet map against its PyTorch formula.
- model: dimsum_l2 under `torch.compile` and bfloat16 autocast as a share of the card's own bfloat16 matrix rate, which
  the same run measures on a large product; images a second; peak memory.

A wrong answer is not timed. The script itself can be tried with small sizes and `--device cpu`, its ops (`--parts scan
others`) under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import refuse_wrong, report, time_cases
from scan import channels_first, make_inputs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import wavemamba
from wavemamba import ops

TESTS = Path(__file__).parent.parent / "tests" / "cuda"
SEQUENCES = ("u", "delta", "B", "C", "z")
TOLERANCE = 2e-2  # relative L2 against float64, for bfloat16 in and out

Inputs = dict[str, Tensor]
Cases = dict[str, Callable[[], Any]]


def run_tests() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("the GPU tests fail; nothing is timed")


def installed(package: str) -> bool:
    """Whether a package imports; without its compiled part mamba-ssm is found but does not."""
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed: its rows are skipped")
        return False
    try:
        importlib.import_module(package)
    except ImportError as error:
        print(f"{package} does not import ({error}): its rows are skipped")
        return False
    return True


def seconds_of(cases: Cases, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one call each; a timing covers many calls, so that it measures the GPU and not the launches' lead."""

    def repeated(case: Callable[[], Any]) -> None:
        for _ in range(options.repeats):
            case()

    timed = time_cases({name: functools.partial(repeated, case) for name, case in cases.items()}, rounds=options.rounds)
    return {name: value / options.repeats for name, value in timed.items()}


def compare(what: str, cases: Cases, options: argparse.Namespace) -> dict[str, Any]:
    """A row: our milliseconds, and by how many times each other contender is slower."""
    seconds = seconds_of(cases, options)
    own = seconds.pop("wavemamba")
    others = {f"{name} / ours": value / own for name, value in seconds.items()}
    return {"what": what, "ms": own * 1e3, **others}


def stepping(function: Callable[..., Tensor], inputs: Inputs, dy: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    return lambda: torch.autograd.grad(function(**leaves), list(leaves.values()), dy)


def check(name: str, function: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: Inputs) -> None:
    """Refuse a contender whose output or gradients are wrong, on one batch element."""
    inputs = {key: value[:1] if value.shape[0] > 1 and value.dim() > 2 else value for key, value in inputs.items()}
    doubles = {key: value.double().requires_grad_() for key, value in inputs.items()}
    truth = exact(**doubles)
    dy = torch.randn_like(truth)
    leaves = {key: value.detach().clone().requires_grad_() for key, value in inputs.items()}
    y = function(**leaves)
    refuse_wrong(f"{name}, output", y, truth, TOLERANCE)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
    truths = torch.autograd.grad(truth, list(doubles.values()), dy)
    for key, gradient, expected in zip(inputs, gradients, truths, strict=True):
        refuse_wrong(f"{name}, gradient of {key}", gradient, expected, TOLERANCE)


def pair_of_rows(
    what: str, functions: dict[str, tuple[Callable[..., Tensor], Inputs, Tensor]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Forward, and forward + backward, of contenders that come with inputs of their own layout."""

    def forward(function: Callable[..., Tensor], inputs: Inputs) -> Tensor:
        with torch.no_grad():
            return function(**inputs)

    forwards: Cases = {n: functools.partial(forward, f, inputs) for n, (f, inputs, _) in functions.items()}
    steps: Cases = {n: stepping(f, inputs, dy) for n, (f, inputs, dy) in functions.items()}
    return [compare(f"{what}, forward", forwards, options), compare(f"{what}, step", steps, options)]


def scan_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    inputs = make_inputs(options.batch, options.length, options.width, options.states)
    inputs = {k: v.to(options.device, torch.bfloat16 if k in SEQUENCES else None) for k, v in inputs.items()}
    dy = torch.randn_like(inputs["u"])
    order = torch.randperm(options.length, generator=torch.Generator().manual_seed(0)).to(options.device)
    scan = functools.partial(ops.selective_scan, delta_softplus=True)
    exact = functools.partial(scan, backend="torch")
    own, torch_backend = functools.partial(scan, backend="triton"), functools.partial(scan, backend="torch")
    check("scan", own, exact, inputs)
    check("scan in order", functools.partial(own, order=order), functools.partial(exact, order=order), inputs)
    plain = {"wavemamba": (own, inputs, dy), "torch": (torch_backend, inputs, dy)}
    ordered = {"wavemamba": (functools.partial(own, order=order), inputs, dy)}
    if installed("mamba_ssm"):
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        def package(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, **rest: Tensor) -> Tensor:
            y: Tensor = selective_scan_fn(u, delta, A, B, C, D, rest["z"], rest["delta_bias"], delta_softplus=True)
            return y

        def package_on_rows(**rows: Tensor) -> Tensor:
            return package(**channels_first(rows)).mT

        check("mamba-ssm", package_on_rows, exact, inputs)
        plain["mamba-ssm"] = (package, channels_first(inputs), dy.mT.contiguous())
        ordered["mamba-ssm"] = (functools.partial(scan, backend="mamba_ssm", order=order), inputs, dy)
    return pair_of_rows("scan", plain, options) + pair_of_rows("scan in order", ordered, options)


def other_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    dtype = torch.bfloat16
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(options.device, dtype)

    inputs = {
        "x": normal(options.batch, options.length, options.width),
        "weight": normal(options.width, 4),
        "bias": normal(options.width),
    }
    dy = torch.randn_like(inputs["x"])
    convolution = functools.partial(ops.causal_conv1d, activation="silu")
    own = functools.partial(convolution, backend="triton")
    exact = functools.partial(convolution, backend="torch")
    check("convolution", own, exact, inputs)
    contenders = {"wavemamba": (own, inputs, dy), "torch": (exact, inputs, dy)}
    if installed("causal_conv1d"):
        from causal_conv1d import causal_conv1d_fn

        def package(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y: Tensor = causal_conv1d_fn(x, weight, bias, activation="silu")
            return y

        check("causal-conv1d", lambda x, **rest: package(x.mT.contiguous(), **rest).mT, exact, inputs)
        contenders["causal-conv1d"] = (package, channels_first(inputs), dy.mT.contiguous())
    rows = pair_of_rows("convolution", contenders, options)

    side = int(options.length**0.5)
    image = {"x": normal(options.batch, side, side, options.width)}
    wavelet = functools.partial(ops.to_haar_map, levels=2, layout="channel")
    own, exact = functools.partial(wavelet, backend="triton"), functools.partial(wavelet, backend="torch")
    check("wavelet map", own, exact, image)
    dy = torch.randn_like(image["x"])
    contenders = {"wavemamba": (own, image, dy), "torch": (exact, image, dy)}
    return rows + pair_of_rows("wavelet map, 2 levels", contenders, options)


def matrix_rate(options: argparse.Namespace) -> float:
    """Floating-point operations a second of a large bfloat16 product, the best of several sizes."""
    rates = []
    for size in options.products:
        a, b = (torch.randn(size, size, device=options.device, dtype=torch.bfloat16) for _ in range(2))
        seconds = seconds_of({"product": functools.partial(torch.mm, a, b)}, options)
        rates.append(2 * size**3 / seconds["product"])
    return max(rates)


def model_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = wavemamba.create_model(options.model, **({} if options.depth is None else {"depth": options.depth}))
    with torch.no_grad():
        for parameter in model.parameters():  # zero-initialised layers would hide a wrong answer
            if not parameter.any():
                parameter.normal_(std=0.02)
    model.eval().to(options.device)
    compiled = torch.compile(model, fullgraph=True, mode=options.mode)
    rate = matrix_rate(options)
    return [
        model_row(what, model, compiled, batch, rate, options)
        for what, batch in (("forward", options.model_batch), ("step", options.step_batch))
    ]


def model_row(
    what: str, model: nn.Module, compiled: Any, batch: int, rate: float, options: argparse.Namespace
) -> dict[str, Any]:
    config = model.config
    x = torch.randn(batch, config.in_chans, *config.img_size, device=options.device)
    arguments = (x, torch.rand(batch, device=options.device), torch.randint(config.num_classes, (batch,)).to(x.device))
    target = torch.randn_like(x)

    def run(network: Any, *arguments: Tensor) -> Tensor:
        with torch.set_grad_enabled(what == "step"), torch.autocast(x.device.type, torch.bfloat16):
            y: Tensor = network(*arguments)
        if what == "step":
            model.zero_grad(set_to_none=True)
            (y.float() - target[: len(y)]).square().mean().backward()
        return y.detach()

    one = tuple(argument[:1] for argument in arguments)
    with torch.no_grad():
        exact = model(*one)  # in float32, not compiled
    error = refuse_wrong(what, run(compiled, *arguments)[:1], exact, 5e-2)
    with FlopCounterMode(display=False) as counter:
        run(model, *one)
    flops = batch * counter.get_total_flops()
    on_gpu = x.is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of({"model": functools.partial(run, compiled, *arguments)}, options)["model"]
    return {
        "what": f"{options.model}, {what}, batch {batch}",
        "ms": seconds * 1e3,
        "images a second": batch / seconds,
        "GFLOP an image": flops / batch / 1e9,
        "TFLOP a second": flops / seconds / 1e12,
        "of the matrix rate": flops / seconds / rate,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "error": error,
    }


PARTS = {"scan": scan_rows, "others": other_rows, "model": model_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--batch", type=int, default=64, help="of the ops")
    parser.add_argument("--length", type=int, default=256, help="tokens, a square number")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--model", default="dimsum_l2")
    parser.add_argument("--depth", type=int, help="fewer blocks than the model has, for a quick look")
    parser.add_argument("--mode", default="default", help="of torch.compile; 'reduce-overhead' uses CUDA graphs")
    parser.add_argument("--model-batch", type=int, default=64, help="of the forward pass")
    parser.add_argument("--step-batch", type=int, default=64, help="of the training step")
    parser.add_argument("--products", type=int, nargs="+", default=[4096, 8192, 16384], help="sides of the products")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=10, help="calls in one timing")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="folder of the JSON; default benchmarks/results")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is available to PyTorch")
    if not options.skip_tests:
        run_tests()
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "parts")}
    for part in options.parts:
        report(f"gpu-{part}", PARTS[part](options), options.out, **settings)


if __name__ == "__main__":
    main()
