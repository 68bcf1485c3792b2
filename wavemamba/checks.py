"""Checks shared by the ops; each names the argument, what was expected and what came."""

from __future__ import annotations

import math

from torch import Tensor

from wavemamba.errors import ConfigError, ShapeError


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


def expect_levels(levels: int, most: float = math.inf) -> None:
    """Raise `ConfigError` unless the number of splits is an int in `0 .. most`."""
    if not isinstance(levels, int) or not 0 <= levels <= most:
        bound = "" if most == math.inf else f" and <= {most}"
        raise ConfigError(f"levels: expected an int >= 0{bound}, got {levels!r}")


def expect_size(name: str, value: object) -> None:
    """Raise `ConfigError` unless a size is an int >= 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: expected an int >= 1, got {value!r}")
