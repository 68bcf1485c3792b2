"""Scan orders: in which sequence a Mamba visits the tokens of an (H, W) grid.

A `ScanOrder` is one permutation for every grid. Orders are made by `scan_order(name, ...)` and combined by
`.reversed()` and `.then(...)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavemamba.constants import compiled_constant, constant
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.scans.permutation import trust

Permutation = NDArray[np.int64]


@dataclass(frozen=True)
class ScanOrder:
    """One way to visit the tokens of any (H, W) grid; hashable, and equal to an order made the same way.

    Args:
        name: what it is called, unique to what it does.
        build: `(H, W) ->` the token (row-major index) visited at each step, (H * W,) int64.
    """

    name: str
    build: Callable[[int, int], Permutation]

    def __post_init__(self) -> None:
        """Make the order known by its name, which is what a compiled graph refers to it by."""
        _orders[self.name] = self

    def __reduce__(self) -> tuple[type[ScanOrder], tuple[str, Callable[[int, int], Permutation]]]:
        """Unpickle by construction, which makes the order known in the process that reads it."""
        return ScanOrder, (self.name, self.build)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScanOrder) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"ScanOrder({self.name!r})"

    def permutation(self, H: int, W: int, device: torch.device | str | None = None) -> Tensor:
        """The token visited at each step, (H * W,) int64; cached per grid and device, not to be written to."""
        return _lookup(self.name, H, W, device, inverse=False)

    def inverse(self, H: int, W: int, device: torch.device | str | None = None) -> Tensor:
        """The step at which each token is visited, (H * W,) int64; cached per grid and device."""
        return _lookup(self.name, H, W, device, inverse=True)

    def visits(self, H: int, W: int) -> Permutation:
        """What `build` returns, once it is known to visit every token."""
        return _checked(self.name, self.build(H, W), H, W)

    @property
    def is_identity(self) -> bool:
        """Whether this is the row-major order, which needs no permutation at all."""
        return self.name == "raster"

    def reversed(self) -> ScanOrder:
        """The same visits, last first."""
        return ScanOrder(f"reversed({self.name})", functools.partial(_reversed, self.visits))

    def then(self, path: ScanOrder) -> ScanOrder:
        """Walk this order's sequence, laid out row-major on the grid again, along `path`: step l is self[path[l]]."""
        if path.is_identity:
            return self
        return ScanOrder(f"{self.name}.then({path.name})", functools.partial(_composed, self.visits, path.visits))


def scan_order(
    name: str,
    *,
    path: int = 0,
    window: int | tuple[int, int] | None = None,
    tiles: int | None = None,
    transpose: bool = False,
    reverse: bool = False,
) -> ScanOrder:
    """Make a scan order.

    Args:
        name: "raster" (row-major), "column" (column-major), "reverse" (row-major, last first), "snake" (every second
            row backwards), "window" (row-major over windows and inside them), "hilbert" (neighbouring steps are
            neighbouring tokens on any grid), or one of the path families "sweep", "zigma", "jpeg".
        path: 0-7, which of a family's paths: path `2 k` starts at corner k (top left, top right, bottom left, bottom
            right) and runs along rows first, path `2 k + 1` along columns first.
        window: the window's side, or its (height, width), in tokens, for "window" alone; windows at the far edges are
            smaller where a side is not divisible.
        tiles: instead of `window`: cut each axis into so many windows.
        transpose: exchange rows and columns.
        reverse: run backwards.

    Raises:
        ConfigError: the name or an option is unknown.
    """
    builders: dict[str, Callable[[int, int], Permutation]] = {
        "raster": _raster,
        "column": functools.partial(_transposed, _raster),
        "reverse": functools.partial(_reversed, _raster),
        "snake": _snake,
        "hilbert": _hilbert,
    }
    label = name
    if name in _FAMILIES:
        if path not in range(8):
            raise ConfigError(f"path: expected 0 to 7, got {path!r}")
        build: Callable[[int, int], Permutation] = functools.partial(_path, name, path)
        label = f"{name}{path}"
    elif name == "window" and tiles is not None and window is None:
        if not isinstance(tiles, int) or tiles < 1:
            raise ConfigError(f"tiles: expected an int >= 1, got {tiles!r}")
        build = functools.partial(_tiles, tiles)
        label = f"window/{tiles}"
    elif name == "window":
        height, width = window if isinstance(window, tuple) else (window, window)
        if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
            raise ConfigError(
                f"window: expected a side or a (height, width) >= 1, got {window!r} and tiles = {tiles!r}"
            )
        build = functools.partial(_window, height, width)
        label = f"window{height}x{width}"
    elif name in builders:
        build = builders[name]
    else:
        names = [*builders, "window", *_FAMILIES]
        raise ConfigError(f"name: expected one of {', '.join(names)}, got {name!r}")
    if (window is not None or tiles is not None) and name != "window":
        raise ConfigError(f"window, tiles: expected None for the order {name!r}, got {window!r}, {tiles!r}")
    order = ScanOrder(label, build)
    if transpose:
        order = ScanOrder(f"transposed({order.name})", functools.partial(_transposed, order.build))
    return order.reversed() if reverse else order


def _raster(H: int, W: int) -> Permutation:
    return np.arange(H * W, dtype=np.int64)


def _transposed(build: Callable[[int, int], Permutation], H: int, W: int) -> Permutation:
    visited = build(W, H)  # on the transposed grid: row = column, column = row
    return (visited % H) * W + visited // H


def _reversed(build: Callable[[int, int], Permutation], H: int, W: int) -> Permutation:
    return np.ascontiguousarray(build(H, W)[::-1])


def _composed(
    first: Callable[[int, int], Permutation], second: Callable[[int, int], Permutation], H: int, W: int
) -> Permutation:
    return first(H, W)[second(H, W)]


def _snake(H: int, W: int) -> Permutation:
    grid = _raster(H, W).reshape(H, W)
    grid[1::2] = grid[1::2, ::-1].copy()
    return grid.ravel()


def _window(height: int, width: int, H: int, W: int) -> Permutation:
    rows, columns = np.divmod(_raster(H, W), W)
    return np.lexsort((columns, rows, columns // width, rows // height)).astype(np.int64)


def _tiles(count: int, H: int, W: int) -> Permutation:
    return _window(max(1, -(-H // count)), max(1, -(-W // count)), H, W)


def _jpeg(H: int, W: int) -> Permutation:
    rows, columns = np.divmod(_raster(H, W), W)
    diagonal = rows + columns
    along = np.where(diagonal % 2 == 1, rows, columns)
    return np.lexsort((along, diagonal)).astype(np.int64)


_FAMILIES: dict[str, Callable[[int, int], Permutation]] = {"sweep": _raster, "zigma": _snake, "jpeg": _jpeg}


def _path(family: str, path: int, H: int, W: int) -> Permutation:
    corner, columns_first = divmod(path, 2)
    build = _FAMILIES[family]
    visited = _transposed(build, H, W) if columns_first else build(H, W)
    rows, columns = np.divmod(visited, W)
    if corner & 1:
        columns = W - 1 - columns
    if corner & 2:
        rows = H - 1 - rows
    return rows * W + columns


def _hilbert(H: int, W: int) -> Permutation:
    """A space-filling walk of an H x W rectangle: halve it along its longer side until a strip remains."""
    cells = _hilbert_walk(0, 0, W, 0, 0, H) if W >= H else _hilbert_walk(0, 0, 0, H, W, 0)
    return np.array([row * W + column for column, row in cells], dtype=np.int64)


def _hilbert_walk(x: int, y: int, ax: int, ay: int, bx: int, by: int) -> Iterator[tuple[int, int]]:
    # From the corner (x, y), all cells of the rectangle with the signed sides a (walked along) and b.
    # Source: J. Cerveny, "Space-filling curve for rectangular domains of arbitrary size" (gilbert), 2018.
    length, breadth = abs(ax + ay), abs(bx + by)
    ux, uy, vx, vy = (int(np.sign(side)) for side in (ax, ay, bx, by))
    if breadth == 1:
        yield from ((x + ux * i, y + uy * i) for i in range(length))
        return
    if length == 1:
        yield from ((x + vx * i, y + vy * i) for i in range(breadth))
        return
    px, py, qx, qy = ax // 2, ay // 2, bx // 2, by // 2
    if 2 * length > 3 * breadth:  # long: two rectangles in a row, the first of even length
        if (px + py) % 2 and length > 2:
            px, py = px + ux, py + uy
        yield from _hilbert_walk(x, y, px, py, bx, by)
        yield from _hilbert_walk(x + px, y + py, ax - px, ay - py, bx, by)
        return
    if (qx + qy) % 2 and breadth > 2:
        qx, qy = qx + vx, qy + vy
    yield from _hilbert_walk(x, y, qx, qy, px, py)  # up,
    yield from _hilbert_walk(x + qx, y + qy, ax, ay, bx - qx, by - qy)  # across,
    x, y = x + ax - ux + qx - vx, y + ay - uy + qy - vy
    yield from _hilbert_walk(x, y, -qx, -qy, px - ax, py - ay)  # and down


_orders: dict[str, ScanOrder] = {}


def _lookup(name: str, H: int, W: int, device: torch.device | str | None, *, inverse: bool) -> Tensor:
    place = torch.device("cpu" if device is None else device)
    if torch.compiler.is_compiling():  # a graph keeps the name and the sizes, and no tensor of this process
        compiled: Tensor = _permutation_op(name, H, W, place, inverse)
        return compiled
    return constant((name, H, W, inverse), place, functools.partial(_array, name, H, W, inverse), prepare=trust)


@torch.library.custom_op("wavemamba::scan_permutation", mutates_args=())
def _permutation_op(name: str, H: int, W: int, device: torch.device, inverse: bool) -> Tensor:
    return compiled_constant((name, H, W, inverse), device, functools.partial(_array, name, H, W, inverse))


@_permutation_op.register_fake
def _(name: str, H: int, W: int, device: torch.device, inverse: bool) -> Tensor:
    return torch.empty(H * W, dtype=torch.int64, device=device)


def _array(name: str, H: int, W: int, inverse: bool) -> Permutation:
    if H < 1 or W < 1:
        raise ShapeError(f"grid: expected H, W >= 1, got {(H, W)}")
    visited = _orders[name].visits(H, W)
    if not inverse:
        return visited
    steps = np.empty_like(visited)
    steps[visited] = _raster(H, W)
    return steps


def _checked(name: str, built: object, H: int, W: int) -> Permutation:
    visited = np.asarray(built.cpu() if isinstance(built, Tensor) else built)
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
