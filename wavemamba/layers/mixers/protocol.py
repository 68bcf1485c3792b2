"""What a block asks of a sequence mixer."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from wavemamba.errors import ShapeError
from wavemamba.layers.part_checks import expect_part
from wavemamba.scans import ScanOrder


class Mixer(Protocol):
    """What `mixer=` of the blocks takes: an `nn.Module` with this `forward`.

    A block reads one attribute besides, when it is built: `takes_condition`. Where it is there and False, the mixer
    gets `cond = None`, and the condition acts through the block's modulation alone; otherwise the mixer gets the
    condition, and either uses it or raises.
    """

    def __call__(self, tokens: Tensor, cond: Tensor | None = None, *, order: Tensor | None = None) -> Tensor:
        """Mix the tokens of each sample.

        Args:
            tokens: (B, L, C).
            cond: (B, cond_dim), or None.
            order: (L,) int64, a permutation: step `l` of the sequence reads and writes row `order[l]`; None: in turn.

        Returns:
            (B, L, C), in the dtype of `tokens`; rows stay where they were.
        """


def expect_mixer(mixer: object, name: str = "mixer") -> nn.Module:
    """Return `mixer`, or raise `ConfigError`, which calls it by `name`, unless it can be called as a `Mixer` is."""
    return expect_part(name, mixer, ("tokens", "cond"), ("order",))


def resolve_order(
    order: Tensor | ScanOrder | None, grid: tuple[int, int] | None, length: int, device: torch.device
) -> Tensor | None:
    """The permutation that an order stands for; what a mixer calls that takes a `ScanOrder` too.

    Args:
        order: a permutation (L,), returned as it is; a `ScanOrder`, which needs `grid`; or None: in turn.
        grid: (H, W) with `H * W = L`, for a `ScanOrder`.
        length: L.
        device: where the permutation is wanted.

    Returns:
        (L,) int64, or None where the order is in turn.

    Raises:
        ShapeError: the grid is missing, not wanted or of another size, or it is no order.
    """
    scan = order if isinstance(order, ScanOrder) else None
    if (grid is None) != (scan is None) or (grid is not None and math.prod(grid) != length):
        wanted = "None without a ScanOrder" if scan is None else f"(H, W) with H * W = {length} for {scan}"
        raise ShapeError(f"grid: expected {wanted}, got {grid}; pass the grid of the tokens with a ScanOrder")
    if order is None or isinstance(order, Tensor):
        return order
    if scan is None or grid is None:
        raise ShapeError(f"order: expected a permutation (L,), a ScanOrder or None, got {type(order).__name__}")
    return scan.order_for(*grid, device=device)
