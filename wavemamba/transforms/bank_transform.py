"""What transforms made of filter banks have in common: in a graph for any grid each is one operator.

Slices and sums of them lie in memory as the sizes have it, so that a graph made of them would be right for a single
cell along a side, or for several cells.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from wavemamba.ops.dispatch.kernel_op import KernelOp, schema_of
from wavemamba.ops.haar import Layout
from wavemamba.ops.haar.layout import arrange_bands, choose_layout, collect_bands
from wavemamba.sizes import is_open
from wavemamba.transforms.base import FrequencyTransform


class BankTransform(FrequencyTransform):
    """A transform made of a filter bank, and of the bank that undoes it."""

    @property
    @abstractmethod
    def recipe(self) -> tuple[str, str, int]:
        """What makes it again: a key of `MAKERS` and what that function takes, a name and a number."""

    @abstractmethod
    def split_by(self, x: Tensor, *, dual: bool) -> Tensor:
        """Split a map by the bank, or by the one that undoes it."""

    @abstractmethod
    def merge_by(self, bands: Tensor, *, dual: bool) -> Tensor:
        """The adjoint of `split_by`; that of the other bank undoes it."""

    def split(self, x: Tensor) -> Tensor:
        """By the bank."""
        return self.split_by(x, dual=False)

    def merge(self, bands: Tensor) -> Tensor:
        """The adjoint of the other bank."""
        return self.merge_by(bands, dual=True)

    def to_map(self, x: Tensor, layout: Layout) -> Tensor:
        """See `FrequencyTransform.to_map`."""
        if not _serves_any_grid(x):
            return super().to_map(x, layout)
        self._check_map(x)
        y: Tensor = _bank_map(*MapInputs(x, *self.recipe, choose_layout(layout), 1 / self.side, False, False))
        return y

    def from_map(self, x: Tensor, layout: Layout) -> Tensor:
        """See `FrequencyTransform.from_map`."""
        if not _serves_any_grid(x):
            return super().from_map(x, layout)
        self._check_map(x)
        y: Tensor = _bank_map(*MapInputs(x, *self.recipe, choose_layout(layout), float(self.side), True, True))
        return y


MAKERS: dict[str, Callable[[str, int], BankTransform]] = {}
"""What makes a transform of a kind from a name and a number."""


def _serves_any_grid(x: Tensor) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4 and (is_open(x.shape[1]) or is_open(x.shape[2]))


class MapInputs(NamedTuple):
    """What the operator takes."""

    x: Tensor
    kind: str
    name: str
    number: int
    layout: str
    scale: float
    dual: bool
    merges: bool


def _compute(*values: Any) -> Tensor:
    x, kind, name, number, layout, scale, dual, merges = MapInputs(*values)
    transform = MAKERS[kind](name, number)
    if merges:
        return transform.merge_by(collect_bands(x, transform.side, layout), dual=dual) * scale
    return arrange_bands(transform.split_by(x, dual=dual) * scale, transform.side, layout)


def _fake(*values: Any) -> Tensor:
    x = values[0]
    fake: Tensor = x.new_empty(x.shape)
    return fake


def _flops(*values: Any, **_: Any) -> int:
    """The scaling; the products and sums of a filter depend on its length, which a shape does not say."""
    return math.prod(values[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *ctx.linear_map, ctx.merges = inputs


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _bank_map(grad, *ctx.linear_map, not ctx.merges), *[None] * 7


_bank_map = KernelOp("bank_map", schema_of(MapInputs), _compute, _fake, _flops, _save, _gradients)
