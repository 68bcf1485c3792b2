"""A space-filling walk of any rectangle: neighbouring steps are neighbouring tokens.

Source: J. Cerveny, "Space-filling curve for rectangular domains of arbitrary size" (gilbert), 2018.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wavemamba.scans.registry import Permutation, register_scan_order

Pieces = NDArray[np.int64]
"""(pieces, 6): each row is a rectangle (x, y, ax, ay, bx, by), walked from the corner (x, y) along the signed side a,
its other side is b."""


def hilbert(H: int, W: int) -> Permutation:
    """Halve the rectangle along its longer side, again and again, until strips of one token's width remain."""
    pieces = np.array([[0, 0, W, 0, 0, H] if W >= H else [0, 0, 0, H, W, 0]], dtype=np.int64)
    while not (strip := _is_strip(pieces)).all():
        pieces = _halve(pieces, strip)
    x, y, ax, ay, bx, by = pieces.T
    length, breadth = abs(ax + ay), abs(bx + by)
    along = breadth == 1
    dx, dy = np.where(along, np.sign(ax), np.sign(bx)), np.where(along, np.sign(ay), np.sign(by))
    steps = np.where(along, length, breadth)
    step = np.arange(H * W) - np.repeat(np.cumsum(steps) - steps, steps)
    columns, rows = np.repeat(x, steps) + step * np.repeat(dx, steps), np.repeat(y, steps) + step * np.repeat(dy, steps)
    return rows * W + columns


def _is_strip(pieces: Pieces) -> NDArray[np.bool_]:
    _, _, ax, ay, bx, by = pieces.T
    return (abs(ax + ay) == 1) | (abs(bx + by) == 1)


def _halve(pieces: Pieces, strip: NDArray[np.bool_]) -> Pieces:
    """Put the parts of every rectangle in its place: a strip stays, a long one becomes two, any other one three."""
    parts, long = _parts(pieces[~strip])
    count = np.ones(len(pieces), dtype=np.int64)
    count[~strip] = np.where(long, 2, 3)
    place = np.cumsum(count) - count
    halved = np.empty((count.sum(), 6), dtype=np.int64)
    halved[place[strip]] = pieces[strip]
    halved[place[~strip]] = parts[0]
    halved[place[~strip] + 1] = parts[1]
    halved[place[~strip][~long] + 2] = parts[2][~long]
    return halved


def _parts(pieces: Pieces) -> tuple[list[Pieces], NDArray[np.bool_]]:
    """The three parts of every rectangle, and which are long and have but the first two."""
    x, y, ax, ay, bx, by = pieces.T
    length, breadth = abs(ax + ay), abs(bx + by)
    ux, uy, vx, vy = np.sign(ax), np.sign(ay), np.sign(bx), np.sign(by)
    long = 2 * length > 3 * breadth
    px, py, qx, qy = ax // 2, ay // 2, bx // 2, by // 2
    longer = long & ((px + py) % 2 != 0) & (length > 2)  # the first part of a long one has an even length
    px, py = px + ux * longer, py + uy * longer
    longer = ((qx + qy) % 2 != 0) & (breadth > 2)
    qx, qy = qx + vx * longer, qy + vy * longer
    up = np.stack([x, y, qx, qy, px, py], axis=1)
    across = np.stack([x + qx, y + qy, ax, ay, bx - qx, by - qy], axis=1)
    down = np.stack([x + ax - ux + qx - vx, y + ay - uy + qy - vy, -qx, -qy, px - ax, py - ay], axis=1)
    first, second = (x, y, px, py, bx, by), (x + px, y + py, ax - px, ay - py, bx, by)
    up[long], across[long] = np.stack(first, axis=1)[long], np.stack(second, axis=1)[long]
    return [up, across, down], long


register_scan_order("hilbert", hilbert)
