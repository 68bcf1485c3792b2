"""The scan order: one permutation for every grid, by name or by a function of the user's own."""

from __future__ import annotations

import functools
import itertools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wavemamba.constants import compiled_constant, constant
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.scans.permutation import trust
from wavemamba.scans.registry import Permutation, checked_options, find_order
from wavemamba.scans.spelling import Combined, Word, parse, spell

Build = Callable[[int, int], Any]


@dataclass(frozen=True)
class ScanOrder:
    """One way to visit the tokens of any (H, W) grid; orders of the same name and function are equal.

    `scan_order(name)` makes those that have a name. An order of one's own needs none: it is built from a function.

    Args:
        name: what it is called.
        build: `(H, W) ->` the token (row-major index) visited at each step: H * W integers, each token once. It
            depends on nothing else: what it returned is kept.
    """

    name: str
    build: Build
    is_identity: bool = field(init=False, compare=False, repr=False)
    """Whether this is the row-major order, which needs no permutation at all."""
    spelling: str | None = field(init=False, compare=False, repr=False)
    """What `scan_order` makes an equal order from, in any process that knows the names in it; None: nothing."""
    _reference: str = field(init=False, compare=False, repr=False)  # what a compiled graph calls it by

    def __post_init__(self) -> None:
        """Find out how a compiled graph can refer to the order."""
        spelling = self.build.spelling if isinstance(self.build, _Walk) else None
        reference = f"{self.name} #{next(_numbers)}" if spelling is None else spelling
        for attribute, value in (
            ("is_identity", spelling == "raster"),
            ("spelling", spelling),
            ("_reference", reference),
        ):
            object.__setattr__(self, attribute, value)
        if spelling is None:
            _unnamed[reference] = self

    def __reduce__(self) -> tuple[type[ScanOrder], tuple[str, Build]]:
        """Unpickle by construction: a compiled graph refers to an unnamed order by a number of this process."""
        return ScanOrder, (self.name, self.build)

    def __hash__(self) -> int:
        return hash(self.name)  # not every function has a hash

    def __repr__(self) -> str:
        return f"ScanOrder({self.name!r})"

    def permutation(self, H: int, W: int, device: torch.device | str | None = None) -> Tensor:
        """The token visited at each step, (H * W,) int64; cached per grid and device, not to be written to.

        Raises:
            ShapeError: the grid is empty, or the order's function does not return a permutation.
        """
        return _lookup(self, H, W, device, inverse=False)

    def order_for(self, H: int, W: int, device: torch.device | str | None = None) -> Tensor | None:
        """What `order=` of mixers and ops takes on a grid: `permutation`, or None for the row-major order."""
        return None if self.is_identity else self.permutation(H, W, device)

    def inverse(self, H: int, W: int, device: torch.device | str | None = None) -> Tensor:
        """The step at which each token is visited, (H * W,) int64; cached and checked like `permutation`."""
        return _lookup(self, H, W, device, inverse=True)

    def visits(self, H: int, W: int) -> Permutation:
        """The token visited at each step, as an array that is computed and checked anew."""
        built = self.build(H, W)
        return _checked(self.name, built.cpu() if isinstance(built, Tensor) else built, H, W)

    def reversed(self) -> ScanOrder:
        """The same visits, last first."""
        return _made(_Reversed((self,)))

    def transposed(self) -> ScanOrder:
        """Rows and columns exchanged."""
        return _made(_Transposed((self,)))

    def then(self, path: ScanOrder) -> ScanOrder:
        """Walk this order's sequence, laid out row-major on the grid again, along `path`: step l is self[path[l]]."""
        return self if path.is_identity else _made(_Then((self, path)))


def scan_order(name: str, *, transpose: bool = False, reverse: bool = False, **options: Any) -> ScanOrder:
    """Make a scan order by name.

    | name | visits |
    |---|---|
    | "raster", "column", "reverse" | row-major, column-major, row-major with the last token first |
    | "snake" | every second row backwards |
    | "window" | row-major over windows and inside them; `window=` side or (height, width) in tokens, or `tiles=` |
    | "hilbert" | neighbouring steps are neighbouring tokens, on any grid |
    | "sweep", "zigma", "jpeg" | `path=` 0 to 7 of a family: four corners, along rows or columns |
    | those of `register_scan_order` | what their function returns |

    The name may hold the options, and combine orders: "jpeg(path=3)", "reversed(window(tiles=4))",
    "transposed(snake)", "raster.then(hilbert)". An order's own `name` is written so.

    Args:
        name: one of `list_scan_orders()`, or a spelling as above.
        transpose: exchange rows and columns.
        reverse: run backwards.
        **options: of the order of this name.

    Raises:
        ConfigError: the name or an option is unknown, or a value makes no sense.
    """
    spelt = parse(name)
    if options and isinstance(spelt, Combined):
        raise ConfigError(f"{', '.join(options)}: expected no options beside {name!r}; write them into the name")
    order = _read(Word(spelt.name, {**spelt.options, **options}) if isinstance(spelt, Word) else spelt)
    order = order.transposed() if transpose else order
    return order.reversed() if reverse else order


def _read(spelt: Word | Combined) -> ScanOrder:
    if isinstance(spelt, Word):
        name, options = checked_options(spelt.name, spelt.options)
        return _made(_Registered((), name, tuple(options.items())))
    first, *rest = (_read(part) for part in spelt.parts)
    if spelt.how == "then":
        return first.then(*rest)
    return first.reversed() if spelt.how == "reversed" else first.transposed()


@dataclass(frozen=True)
class _Walk(ABC):
    """A function of (H, W) that knows how it is written."""

    parts: tuple[ScanOrder, ...]

    @abstractmethod
    def __call__(self, H: int, W: int) -> Any: ...

    @abstractmethod
    def spell(self, *parts: str) -> str:
        """The spelling, from those of the parts."""

    @property
    def spelling(self) -> str | None:
        spellings = [part.spelling for part in self.parts]
        known = [spelling for spelling in spellings if spelling is not None]
        return self.spell(*known) if len(known) == len(spellings) else None


@dataclass(frozen=True)
class _Registered(_Walk):
    name: str
    options: tuple[tuple[str, Any], ...]

    def __call__(self, H: int, W: int) -> Any:
        return find_order(self.name)(H, W, **dict(self.options))

    def spell(self, *parts: str) -> str:
        return spell(self.name, self.options)


class _Reversed(_Walk):
    def __call__(self, H: int, W: int) -> Permutation:
        return self.parts[0].visits(H, W)[::-1]

    def spell(self, *parts: str) -> str:
        return f"reversed({parts[0]})"


class _Transposed(_Walk):
    def __call__(self, H: int, W: int) -> Permutation:
        columns, rows = np.divmod(self.parts[0].visits(W, H), H)  # on the transposed grid
        return rows * W + columns

    def spell(self, *parts: str) -> str:
        return f"transposed({parts[0]})"


class _Then(_Walk):
    def __call__(self, H: int, W: int) -> Permutation:
        first, second = self.parts
        return first.visits(H, W)[second.visits(H, W)]

    def spell(self, *parts: str) -> str:
        return f"{parts[0]}.then({parts[1]})"


def _made(walk: _Walk) -> ScanOrder:
    return ScanOrder(walk.spell(*(part.name for part in walk.parts)), walk)


_numbers = itertools.count()
_unnamed: weakref.WeakValueDictionary[str, ScanOrder] = weakref.WeakValueDictionary()
_in_graphs: dict[str, ScanOrder] = {}  # unnamed orders live as long as the graphs that may refer to them: for good


def _lookup(order: ScanOrder, H: int, W: int, device: torch.device | str | None, *, inverse: bool) -> Tensor:
    place = torch.device("cpu" if device is None else device)
    if torch.compiler.is_compiling():  # a graph keeps the reference and the sizes, and no tensor of this process
        compiled: Tensor = _permutation_op(order._reference, H, W, place, inverse)
        return compiled
    H, W = int(H), int(W)  # sizes are tensors under torch.jit.trace
    return constant((order, H, W, inverse), place, functools.partial(_array, order, H, W, inverse), prepare=trust)


@torch.library.custom_op("wavemamba::scan_permutation", mutates_args=())
def _permutation_op(reference: str, H: int, W: int, device: torch.device, inverse: bool) -> Tensor:
    order = _referred(reference)
    return compiled_constant((order, H, W, inverse), device, functools.partial(_array, order, H, W, inverse))


@_permutation_op.register_fake
def _(reference: str, H: int, W: int, device: torch.device, inverse: bool) -> Tensor:
    if reference in _unnamed:
        _in_graphs[reference] = _unnamed[reference]
    return torch.empty(H * W, dtype=torch.int64, device=device)


def _referred(reference: str) -> ScanOrder:
    if "#" not in reference:
        return scan_order(reference)
    try:
        return _in_graphs.get(reference) or _unnamed[reference]
    except KeyError:
        raise ConfigError(
            f"scan order: expected a registered order in a graph that another process made, got {reference!r}; give it "
            "a name with register_scan_order there and here"
        ) from None


def _array(order: ScanOrder, H: int, W: int, inverse: bool) -> Permutation:
    if H < 1 or W < 1:
        raise ShapeError(f"grid: expected H, W >= 1, got {(H, W)}")
    visited = order.visits(H, W)
    return _inverted(visited) if inverse else visited


def _inverted(visited: Permutation) -> Permutation:
    steps = np.empty_like(visited)
    steps[visited] = np.arange(len(visited))
    return steps


def _checked(name: str, built: Any, H: int, W: int) -> Permutation:
    visited = np.asarray(built)
    what = f"ScanOrder {name!r}"
    remedy = "its function must return the row-major index of the token that each step visits"
    if visited.dtype.kind not in "iu":
        raise ShapeError(f"{what}: expected integers for the grid {(H, W)}, got {visited.dtype}; {remedy}")
    if visited.shape != (H * W,):
        raise ShapeError(f"{what}: expected shape ({H * W},) for the grid {(H, W)}, got {visited.shape}; {remedy}")
    visits = np.bincount(np.clip(visited, 0, H * W - 1), minlength=H * W)
    if visited.min() < 0 or visited.max() >= H * W or not visits.all():
        raise ShapeError(
            f"{what}: expected every token 0 to {H * W - 1} once for the grid {(H, W)}, got tokens from "
            f"{visited.min()} to {visited.max()}, {int((visits == 0).sum())} of them never visited; {remedy}"
        )
    return visited.astype(np.int64)
