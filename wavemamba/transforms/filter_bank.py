"""Filter banks along one axis, periodic at its ends: what wavelets and the DCT are made of.

An axis is cut into cells of R samples; R filters of length K turn them into as many coefficients:

    y[h, r] = sum_k filters[r, k] x[R h + first + k],      x[m] = cell m // R, sample m % R, periodic

The adjoint is the same sum the other way round, and the inverse of an orthonormal bank. Both are sums of multiples of
slices, so that autocast and reduced precision of matrix products do not touch them, and take K passes over the axis,
however long it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavemamba.constants import compiled_constant, constant
from wavemamba.dtypes import accumulation_dtype

Bank = NDArray[np.float64]


def filter_axes(x: Tensor, bank: Tensor, first: int) -> Tensor:
    """Filter the rows and the columns of bands.

    Args:
        x: (B, H, W, K, C) in the dtype of `bank`; sides divisible by R.
        bank: (R, length), the filters.
        first: place of a filter's first sample, relative to the cell's.

    Returns:
        (B, W / R, R, H / R, R, K, C): first the coefficients of columns, then those of rows.
    """
    cell = bank.shape[0]
    h, w = x.shape[1] // cell, x.shape[2] // cell
    y = _filter(x.unflatten(1, (h, cell)), bank, first, adjoint=False)
    y = y.unflatten(3, (w, cell)).permute(0, 3, 4, 1, 2, 5, 6)  # long runs in memory along both axes
    return _filter(y, bank, first, adjoint=False)


def unfilter_axes(y: Tensor, bank: Tensor, first: int) -> Tensor:
    """The adjoint of `filter_axes`: its result's shape to (B, H, W, K, C)."""
    x = _filter(y, bank, first, adjoint=True)
    x = _filter(x.permute(0, 3, 4, 1, 2, 5, 6), bank, first, adjoint=True)
    return x.flatten(3, 4).flatten(1, 2)


def _filter(x: Tensor, bank: Tensor, first: int, *, adjoint: bool) -> Tensor:
    function = _Filter if torch.compiler.is_compiling() else _DerivableFilter
    y: Tensor = function.apply(x, bank, first, adjoint)
    return y


class _Filter(torch.autograd.Function):
    """The bank on (outer, cells, R, ...): its gradient is its adjoint, which slices would not find so cheaply."""

    @staticmethod
    def forward(x: Tensor, bank: Tensor, first: int, adjoint: bool) -> Tensor:
        return (_merge if adjoint else _split)(x, bank, first)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, bank, ctx.first, ctx.adjoint = inputs
        ctx.save_for_backward(bank)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (bank,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _filter(grad, bank, ctx.first, adjoint=not ctx.adjoint), None, None, None
        return (_split if ctx.adjoint else _merge)(grad, bank, ctx.first), None, None, None


class _DerivableFilter(_Filter):
    """With what torch.func and forward-mode derivatives need; torch.compile refuses a function with a jvp."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Filter.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (bank,) = ctx.saved_tensors
        return _filter(tangent, bank, ctx.first, adjoint=ctx.adjoint)

    @staticmethod
    def vmap(
        info: Any, places: tuple[int | None, ...], x: Tensor, bank: Tensor, first: int, adjoint: bool
    ) -> tuple[Tensor, int]:
        x = x.movedim(places[0] or 0, 0)
        return _filter(x.flatten(0, 1), bank, first, adjoint=adjoint).unflatten(0, x.shape[:2]), 0


def _split(x: Tensor, bank: Tensor, first: int) -> Tensor:
    cell, length = bank.shape
    cells = x.shape[1]
    low, high = first // cell, (first + length - 1) // cell
    x = _periodic(x, low, high)
    y: Tensor | None = None
    for k in range(length):
        a, sample = divmod(first + k, cell)
        taken, factors = x.narrow(1, a - low, cells).narrow(2, sample, 1), _beside(bank[:, k], x)
        y = taken * factors if y is None else y.addcmul_(taken, factors)
    assert y is not None
    return y


def _merge(y: Tensor, bank: Tensor, first: int) -> Tensor:
    cell, length = bank.shape
    cells = y.shape[1]
    low, high = first // cell, (first + length - 1) // cell
    y = _periodic(y, -high, -low)
    x: Tensor | None = None
    # A cell that the filters cover whole comes first, so that it fills the result.
    for a in sorted(range(low, high + 1), key=lambda a: cell * a < first):
        begin, end = max(cell * a - first, 0), min(cell * (a + 1) - first, length)
        for r in range(cell):
            taken, factors = y.narrow(1, high - a, cells).narrow(2, r, 1), _beside(bank[r, begin:end], y)
            if x is None:
                assert end - begin == cell
                x = taken * factors
            else:
                x.narrow(2, begin + first - cell * a, end - begin).addcmul_(taken, factors)
    assert x is not None
    return x


def _beside(factors: Tensor, x: Tensor) -> Tensor:
    """Factors (R,) along axis 2 of a tensor."""
    return factors.reshape(-1, *(1 for _ in range(x.dim() - 3)))


def _periodic(x: Tensor, low: int, high: int) -> Tensor:
    """Cells `low` to `cells + high` of the periodic axis, side by side in memory."""
    if low == high == 0:
        return x.contiguous()
    cells = x.shape[1]
    return x.index_select(1, torch.arange(low, cells + high, device=x.device) % cells)


BANKS: dict[str, Callable[[str, bool], Bank]] = {}
"""What makes the filters of a kind: `(name, inverse) ->` (R, length)."""


def find_bank(kind: str, name: str, like: Tensor, *, inverse: bool) -> Tensor:
    """The filters of a bank in the accumulation dtype of a tensor and on its device, (R, length).

    Args:
        kind: a key of `BANKS`.
        name: which of its banks.
        like: a tensor of the wanted device and dtype.
        inverse: the filters whose adjoint undoes the bank.
    """
    if torch.compiler.is_compiling():  # a graph keeps the names, and no tensor of this process
        bank = _bank_op(kind, name, inverse, like.device)
    else:
        bank = constant((kind, name, inverse), like.device, functools.partial(BANKS[kind], name, inverse))
    return bank.to(accumulation_dtype(like.dtype))


@torch.library.custom_op("wavemamba::filter_bank", mutates_args=())
def _bank_op(kind: str, name: str, inverse: bool, device: torch.device) -> Tensor:
    return compiled_constant((kind, name, inverse), device, functools.partial(BANKS[kind], name, inverse))


@_bank_op.register_fake
def _(kind: str, name: str, inverse: bool, device: torch.device) -> Tensor:
    return torch.empty(BANKS[kind](name, inverse).shape, dtype=torch.float64, device=device)
