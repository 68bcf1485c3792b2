"""Whole models on the CPU against their own matrix products and against the reference loop.

    python benchmarks/model.py                        # dimsum_l2: forward at batch 1, training step at batch 2
    python benchmarks/model.py --model dimsum_b2 --rounds 3 --dtypes float32
    python benchmarks/model.py --families             # one model of each family, equal in parameters within 5%

In bfloat16, the forward pass is that of bfloat16 weights, the training step that of float32 weights under autocast;
both are compared with float32 before they are timed.

The matrix products of one forward or training step are recorded (shapes, strides and dtypes), and replayed alone: no
program that computes them can be faster. The reference loop is what a user without CUDA is left with: the tokens
gathered into scan order, mamba-ssm's plain loop over (B, E, L) tensors (written anew in scan.py), and scattered back;
everything else in that model stays as it is. A model without such scans is compared with itself in float64 before it is
timed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import itertools
import math
import resource
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from common import refuse_wrong, report, time_cases
from scan import channels_first, loop
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import wavemamba
import wavemamba.layers.mixers.selective_ssm as scan_module
from wavemamba.layers import SelectiveSSM
from wavemamba.ops import warm_up
from wavemamba.sampling.precision import computing_in
from wavemamba.scans import invert_permutation

FAMILIES: dict[str, dict[str, Any]] = {
    "dimsum_s2": {"depth": 8},
    "dit_s2": {},
    "sit_s2": {},
    "zigma_s2": {"depth": 25},
    "diffussm_s": {"depth": 12},
}
"""A model of each family, with the depth at which all have about the parameters of DiT-S/2, 33 M."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {
    ("forward", "float32"): 1e-5,
    ("training step", "float32"): 1e-4,
    ("forward", "bfloat16"): 8e-3,
    ("training step", "bfloat16"): 5e-2,
}

aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class MatrixProducts(TorchDispatchMode):
    """Records every matrix product as a function that computes it again on random numbers of the same strides."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Callable[[], Any]] = []
        self.flops = 0
        self.operands: dict[Any, tuple[Iterator[int], list[Tensor]]] = {}  # by shape, strides and dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.mm.default, aten.bmm.default):
            self._add(*args[:2])
        elif func is aten.addmm.default:
            self._add(*args[1:3])
        elif func is aten.convolution.default:
            x, weight = args[:2]
            grid = math.prod(size // side for size, side in zip(x.shape[2:], weight.shape[2:], strict=True))
            patches = weight.new_empty(x.shape[0] * grid, weight[0].numel())
            self._add(patches, weight.flatten(1).t())
        elif func in (ATTENTION, ATTENTION_BACKWARD):
            q, k, v = args[1:4] if func is ATTENTION_BACKWARD else args[:3]
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
            scores = q.new_empty(q.shape[0], q.shape[1], k.shape[1])
            self._add(q, k.mT)
            self._add(scores, v)
            if func is ATTENTION_BACKWARD:  # scores again, then the gradients of v, scores, q and k
                for a, b in ((scores.mT, q), (scores, k), (scores.mT, q)):
                    self._add(a, b)
        return func(*args, **(kwargs or {}))

    def _add(self, a: Tensor, b: Tensor) -> None:
        a, b = self._operand(a), self._operand(b)
        self.flops += 2 * a.numel() * b.shape[-1]
        product = torch.mm if a.dim() == 2 else torch.bmm
        self.products.append(lambda: product(a, b))

    def _operand(self, like: Tensor) -> Tensor:
        """Random numbers of these strides; the fourth of a kind on, one of the first three, which saves memory."""
        shape, strides = tuple(like.shape), like.stride()
        count, made = self.operands.setdefault((shape, strides, like.dtype), (itertools.count(), []))
        index = next(count)
        if index < 3:
            made.append(torch.empty_strided(shape, strides, dtype=like.dtype).normal_())
        return made[index % 3]

    def replay(self) -> None:
        for product in self.products:
            product()


def loop_in_order(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    *,
    order: Tensor | None,
    delta_bias: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """mamba-ssm's plain loop in the place of `selective_scan`, from a state of zero; the last state is not kept."""
    if order is not None:
        u, delta, B, C, z = (t.index_select(1, order) for t in (u, delta, B, C, z))
    inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    y = loop(channels_first(inputs), unbind=True).mT
    return (y if order is None else y.index_select(1, invert_permutation(order))), None


@contextlib.contextmanager
def reference_loop() -> Iterator[None]:
    """Scan with the plain loop; the rest of the model keeps its kernels."""
    own = scan_module.selective_scan
    scan_module.selective_scan = loop_in_order
    try:
        yield
    finally:
        scan_module.selective_scan = own


class Contest(NamedTuple):
    """What is timed of one model."""

    cases: dict[str, Callable[[], Any]]
    products: MatrixProducts
    error: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dimsum_l2")
    parser.add_argument("--families", action="store_true", help="all families at equal parameters, instead of a model")
    parser.add_argument("--depth", type=int, help="fewer blocks than the model has, for a quick look")
    parser.add_argument("--batches", type=int, nargs=2, default=(1, 2), metavar=("FORWARD", "STEP"))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: both, of several families float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", help="of the JSON under benchmarks/results (cpu-model, or cpu-families)")
    options = parser.parse_args()

    setup = wavemamba.set_up_cpu(options.threads, restart=True)
    warm_up()
    chosen = FAMILIES if options.families else {options.model: {}}
    if options.depth is not None:
        chosen = {name: {**overrides, "depth": options.depth} for name, overrides in chosen.items()}
    models = {name: build(name, overrides) for name, overrides in chosen.items()}
    if options.families and options.depth is None:
        expect_equal(models)
    name = options.name or ("cpu-families" if options.families else "cpu-model")
    dtypes = options.dtypes or (["float32"] if options.families else list(DTYPES))
    settings = {"models": chosen, "rounds": options.rounds, "setup": dataclasses.asdict(setup)}
    report(name, measure(models, options.batches, options.rounds, dtypes), **settings)


def build(name: str, overrides: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    model = wavemamba.create_model(name, **overrides).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zero-initialised layers would hide a wrong answer
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def expect_equal(models: dict[str, nn.Module]) -> None:
    """Stop unless the models have the same number of parameters, within 5%."""
    counts = {name: parameters_of(model) for name, model in models.items()}
    if max(counts.values()) > 1.05 * min(counts.values()):
        raise SystemExit(f"expected models that are equal in parameters within 5%, got {counts}")


def measure(
    models: dict[str, nn.Module], batches: tuple[int, int], rounds: int, dtypes: Sequence[str] = ("float32",)
) -> list[dict[str, Any]]:
    """Rows of the table: every model's forward pass, then every model's training step, each kind timed in one run."""
    rows = []
    for what, contest_of, batch in (("forward", forward, batches[0]), ("training step", step, batches[1])):
        contests = {
            (name, dtype): contest_of(model, batch, dtype) for name, model in models.items() for dtype in dtypes
        }
        cases = {(*key, case): run for key, contest in contests.items() for case, run in contest.cases.items()}
        timed = time_cases(cases, rounds=rounds)
        for (name, dtype), contest in contests.items():
            seconds = {case: timed[name, dtype, case] for case in contest.cases}
            which = {"model": name, "what": what, "dtype": dtype, "batch": batch}
            rows.append({**which, **row(models[name], seconds, contest)})
        if len(models) == 1:  # of several models, the peak of one cannot be told from that of another
            rows[-1]["peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return rows


def inputs(model: nn.Module, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    config = model.config
    x = torch.randn(batch, config.in_chans, *config.img_size)
    return x, torch.rand(batch), torch.randint(0, config.num_classes, (batch,))


def forward(model: nn.Module, batch: int, dtype: str) -> Contest:
    arguments = inputs(model, batch)
    narrow = DTYPES[dtype] != torch.float32
    timed = computing_in(copy.deepcopy(model).to(DTYPES[dtype]), DTYPES[dtype]) if narrow else model

    @torch.inference_mode()
    def run(model: Callable[..., Tensor] = timed, arguments: tuple[Tensor, ...] = arguments) -> Tensor:
        return model(*arguments)

    with MatrixProducts() as products, torch.no_grad():
        timed(*arguments)
    replay = torch.inference_mode()(products.replay)
    expected = run(model) if narrow else None
    return contest("forward", dtype, model, arguments, run, replay, products, expected)


def step(model: nn.Module, batch: int, dtype: str) -> Contest:
    arguments = inputs(model, batch)
    target = torch.randn(batch, model.out_chans, *model.img_size)

    def run(
        model: nn.Module = model, arguments: tuple[Tensor, ...] = arguments, narrow: bool = dtype == "bfloat16"
    ) -> Tensor:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            output = model(*arguments)
        (output - target).square().mean().backward()
        gradient = model.patch_embed.proj.weight.grad  # behind all blocks
        assert gradient is not None
        return gradient.clone()

    with MatrixProducts() as products:
        run()
    expected = run(narrow=False) if dtype == "bfloat16" else None
    return contest("training step", dtype, model, arguments, run, products.replay, products, expected)


def contest(
    what: str,
    dtype: str,
    model: nn.Module,
    arguments: tuple[Tensor, ...],
    run: Callable[..., Tensor],
    replay: Callable[[], None],
    products: MatrixProducts,
    expected: Tensor | None,
) -> Contest:
    """Check what the model computes, in bfloat16 against `expected`, and say what is to be timed.

    In float32 it is checked against the plain loop where it scans, else against itself in float64.
    """
    cases: dict[str, Callable[[], Any]] = {"model": run, "products": replay}
    if expected is None and any(isinstance(module, SelectiveSSM) for module in model.modules()):

        def run_reference() -> Tensor:
            with reference_loop():
                return run()

        cases["loop"] = run_reference
        expected = run_reference()
    elif expected is None:
        wide = tuple(value.double() if value.is_floating_point() else value for value in arguments)
        expected = run(copy.deepcopy(model).double(), wide)
    return Contest(cases, products, refuse_wrong(f"{what} in {dtype}", run(), expected, TOLERANCE[what, dtype]))


def row(model: nn.Module, seconds: dict[str, float], contest: Contest) -> dict[str, Any]:
    own = {"loop / ours": seconds["loop"] / seconds["model"]} if "loop" in seconds else {}
    return {
        "M parameters": parameters_of(model) / 1e6,
        "seconds": seconds["model"],
        "products alone": seconds["products"],
        "of products": seconds["model"] / seconds["products"],
        **own,
        "GFLOP": contest.products.flops / 1e9,
        "error": contest.error,
    }


if __name__ == "__main__":
    main()
