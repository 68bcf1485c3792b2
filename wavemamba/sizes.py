"""Sizes that a graph does not know: one of `torch.compile(dynamic=True)` or `torch.export` that serves any of them.

Such a graph cannot branch on a size. Where it asks whether one is a multiple of another, it is right for those sizes
alone that give the same answer, and the compiler makes another graph, or `torch.export` refuses.
"""

from __future__ import annotations

import torch
from torch import Tensor


def holds_always(condition: bool) -> bool:
    """Whether a condition on sizes holds; in a graph, whether it holds for every size that the graph serves.

    A branch on this asks for no other graph: it takes the special way where that is always right.
    """
    if not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports the compiler

    return statically_known_true(condition)


def is_open(size: int) -> bool:
    """Whether a graph that is being made serves other values of a size too."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(size)


def not_one(size: int) -> int:
    """A size that nothing depends on but how much is padded: at least 2 in a graph that serves other values too.

    PyTorch makes a graph of its own for sides of 1.
    """
    return max(size, 2) if is_open(size) else size


def cut(x: Tensor, axis: int, size: int, first: int = 0) -> Tensor:
    """`size` entries of an axis from the one numbered `first` on, which are there: a view where that can be seen.

    Elsewhere a copy: a slice would ask how many there are, and what comes after it how the view lies in memory.
    """
    if holds_always(first + size <= x.shape[axis]):
        return x.narrow(axis, first, size)
    return x.index_select(axis, torch.arange(first, first + size, device=x.device))
