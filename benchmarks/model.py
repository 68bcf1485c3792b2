"""Whole models on the CPU against their own matrix products and against the reference loop.

    python benchmarks/model.py                        # dimsum_l2: forward at batch 1, training step at batch 2
    python benchmarks/model.py --model dimsum_b2 --rounds 3

The matrix products of one forward or training step are recorded (shapes and strides), and replayed alone: no program
that computes them can be faster. The reference loop is what a user without CUDA is left with: the tokens gathered into
scan order, mamba-ssm's plain loop over (B, E, L) tensors (written anew in scan.py), and scattered back; everything else
in that model stays as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import resource
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import refuse_wrong, report, time_cases
from scan import channels_first, loop
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import wavemamba
import wavemamba.layers.mixers.selective_ssm as scan_module
from wavemamba.ops import warm_up
from wavemamba.scans import invert_permutation

aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class MatrixProducts(TorchDispatchMode):
    """Records every matrix product as a function that computes it again on random numbers of the same strides."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Callable[[], Any]] = []
        self.flops = 0
        self.operands: dict[Any, tuple[Iterator[int], list[Tensor]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.mm.default, aten.bmm.default):
            self._add(*args[:2])
        elif func is aten.addmm.default:
            self._add(*args[1:3])
        elif func is aten.convolution.default:
            x, weight = args[:2]
            patches = torch.empty(x.shape[0] * (x.shape[2] // weight.shape[2]) ** 2, weight[0].numel())
            self._add(patches, weight.flatten(1).t())
        elif func in (ATTENTION, ATTENTION_BACKWARD):
            q, k, v = args[1:4] if func is ATTENTION_BACKWARD else args[:3]
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
            scores = torch.empty(q.shape[0], q.shape[1], k.shape[1])
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
        count, made = self.operands.setdefault((shape, strides), (itertools.count(), []))
        index = next(count)
        if index < 3:
            made.append(torch.empty_strided(shape, strides).normal_())
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dimsum_l2")
    parser.add_argument("--depth", type=int, help="fewer blocks than the model has, for a quick look")
    parser.add_argument("--batches", type=int, nargs=2, default=(1, 2), metavar=("FORWARD", "STEP"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="cpu-model", help="of the JSON under benchmarks/results")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    warm_up()
    overrides = {} if options.depth is None else {"depth": options.depth}
    torch.manual_seed(0)
    model = wavemamba.create_model(options.model, **overrides).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zero-initialised layers would hide a wrong answer
            if not parameter.any():
                parameter.normal_(std=0.02)
    rows = [forward(model, options), step(model, options)]
    report(options.name, rows, model=options.model, depth=model.config.depth, rounds=options.rounds)


def inputs(model: wavemamba.DiMSUM, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    config = model.config
    x = torch.randn(batch, config.in_chans, *config.img_size)
    return x, torch.rand(batch), torch.randint(0, config.num_classes, (batch,))


def forward(model: wavemamba.DiMSUM, options: argparse.Namespace) -> dict[str, Any]:
    arguments = inputs(model, options.batches[0])

    @torch.inference_mode()
    def run() -> Tensor:
        return model(*arguments)

    def run_reference() -> Tensor:
        with reference_loop():
            return run()

    error = refuse_wrong("forward", run(), run_reference(), 1e-5)
    with MatrixProducts() as products, torch.no_grad():
        model(*arguments)
    replay = torch.inference_mode()(products.replay)
    seconds = time_cases({"model": run, "products": replay, "loop": run_reference}, rounds=options.rounds)
    return row("forward", options.batches[0], seconds, products, error)


def step(model: wavemamba.DiMSUM, options: argparse.Namespace) -> dict[str, Any]:
    arguments = inputs(model, options.batches[1])
    target = torch.randn_like(arguments[0])

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        (model(*arguments) - target).square().mean().backward()
        gradient = model.blocks[0].frequency.step.mixer.in_proj.weight.grad
        assert gradient is not None
        return gradient

    def run_reference() -> Tensor:
        with reference_loop():
            return run()

    error = refuse_wrong("training step", run().clone(), run_reference(), 1e-4)
    with MatrixProducts() as products:
        run()
    seconds = time_cases({"model": run, "products": products.replay, "loop": run_reference}, rounds=options.rounds)
    return row("training step", options.batches[1], seconds, products, error)


def row(what: str, batch: int, seconds: dict[str, float], products: MatrixProducts, error: float) -> dict[str, Any]:
    return {
        "what": what,
        "batch": batch,
        "seconds": seconds["model"],
        "products alone": seconds["products"],
        "of products": seconds["model"] / seconds["products"],
        "loop / ours": seconds["loop"] / seconds["model"],
        "GFLOP": products.flops / 1e9,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "error": error,
    }


if __name__ == "__main__":
    main()
