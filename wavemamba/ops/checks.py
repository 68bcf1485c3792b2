"""Shape checks shared by the ops; each names the argument, what was expected and what came."""

from __future__ import annotations

from torch import Tensor

from wavemamba.errors import ShapeError


def expect_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...], meaning: str, remedy: str = "") -> None:
    """Raise `ShapeError` unless `tensor` has the expected sizes; `None` stands for any size.

    Args:
        name: the argument's name.
        tensor: what was passed.
        expected: one entry a dimension.
        meaning: the expected shape in words, for example "(B, L, E)".
        remedy: what the caller can do about it.
    """
    shape = tensor.shape
    if shape == expected:
        return
    if len(shape) != len(expected) or any(e is not None and s != e for s, e in zip(shape, expected, strict=True)):
        sizes = "(" + ", ".join("any" if e is None else str(e) for e in expected) + ")"
        hint = f"; {remedy}" if remedy else ""
        raise ShapeError(f"{name}: expected {meaning} = {sizes}, got {tuple(shape)}{hint}")


def expect_floating(name: str, tensor: Tensor) -> None:
    """Raise `ShapeError` unless the tensor is real and floating."""
    if not tensor.dtype.is_floating_point:
        raise ShapeError(f"{name}: expected a floating dtype, got {tensor.dtype}; convert it with .float()")
