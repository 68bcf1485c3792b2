"""A contest: this library's way and a peer's to do the same thing, at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import refuse_wrong
from model import MatrixProducts
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Run = Callable[[], Any]


def same(y: Tensor) -> Tensor:
    return y


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to compute: what is called, and in whose terms.

    Args:
        call: called with the inputs; gives tensors.
        inputs: in the layout of whoever would call it, which is not timed.
        read: its result as the other side's, one tensor; None where it cannot be compared.
        read_input: the gradient of its first input as the other side's.
    """

    call: Callable[..., Any]
    inputs: tuple[Any, ...]
    read: Callable[[Any], Tensor] = same
    read_input: Callable[[Tensor], Tensor] = same

    @property
    def leaves(self) -> list[Tensor]:
        """What gradients are taken of: floating inputs, then weights."""
        weights = list(self.call.parameters()) if isinstance(self.call, nn.Module) else []
        given = [x for x in self.inputs if isinstance(x, Tensor) and x.is_floating_point()]
        return given + weights

    def forward(self) -> Run:
        """A call without gradients."""

        @torch.no_grad()
        def run() -> Any:
            return self.call(*self.inputs)

        return run

    def step(self) -> Run:
        """A call, and the gradients of inputs and weights."""
        leaves = [leaf.requires_grad_() for leaf in self.leaves]
        gradients = [torch.randn_like(y) for y in self._results()]

        def run() -> Any:
            return torch.autograd.grad(self._results(), leaves, gradients, allow_unused=True)

        return run

    def flops(self, run: Run) -> int:
        """Of the matrix products."""
        with MatrixProducts() as products:
            run()
        return products.flops

    def compared(self, trains: bool) -> list[Tensor]:
        """The result as the other side's, and where it trains the gradient of the first input by a fixed loss."""
        if not trains:
            return [self.read(self.call(*self.inputs))]
        first = self.leaves[0].requires_grad_()
        y = self.read(self.call(*self.inputs))
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        (gradient,) = torch.autograd.grad((y * weights).sum(), [first])
        return [y, self.read_input(gradient)]

    def _results(self) -> list[Tensor]:
        return [y for y in tree_leaves(self.call(*self.inputs)) if isinstance(y, Tensor) and y.requires_grad]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What is set beside what.

    Args:
        name: kind and name of our part, "op: causal_conv1d".
        peer: what a user would take otherwise.
        make: a size to both sides, ours first; raises ImportError where the peer is not installed.
        sizes: three of them, small to large.
        trains: whether there is a backward pass.
        per_gflop: the two compute different functions, so that what is compared is the time of a GFLOP.
        tolerance: relative L2 error beside the peer.
    """

    name: str
    peer: str
    make: Callable[..., tuple[Side, Side]]
    sizes: Sequence[tuple[Any, ...]]
    trains: bool = True
    per_gflop: bool = False
    tolerance: float = 1e-5

    def check(self, ours: Side, peer: Side) -> float:
        """Stop unless both compute the same; the largest relative error."""
        pairs = zip(ours.compared(self.trains), peer.compared(self.trains), strict=True)
        return max(refuse_wrong(f"{self.name} beside {self.peer}", *pair, self.tolerance) for pair in pairs)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def alive(module: nn.Module) -> nn.Module:
    """With no parameter at zero: zero-initialised layers would hide a wrong answer."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return module


def with_weights_of(peer: nn.Module, ours: nn.Module, names: dict[str, str] | None = None) -> nn.Module:
    """The peer with our weights; `names`: beginnings of our names and what the peer has in their place."""
    state = dict(ours.state_dict())
    for begin, other in (names or {}).items():
        state = {other + name[len(begin) :] if name.startswith(begin) else name: value for name, value in state.items()}
    peer.load_state_dict(state)
    return peer
