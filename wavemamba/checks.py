"""Checks shared by the ops; each names the argument, what was expected and what came."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import torch
from torch import Tensor

from wavemamba.errors import ConfigError, ShapeError


def expect_tensor(name: str, value: object) -> None:
    """Raise `ShapeError` unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name}: expected a tensor, got {type(value).__name__}; convert it with torch.as_tensor")


def expect_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...], meaning: str, remedy: str = "") -> None:
    """Raise `ShapeError` unless `tensor` is one of the expected sizes; `None` stands for any size.

    Args:
        name: the argument's name.
        tensor: what was passed.
        expected: one entry a dimension.
        meaning: the expected shape in words, for example "(B, L, E)".
        remedy: what the caller can do about it.
    """
    expect_tensor(name, tensor)
    shape = tensor.shape
    if shape == expected:
        return
    if len(shape) != len(expected) or any(e is not None and s != e for s, e in zip(shape, expected, strict=True)):
        sizes = "(" + ", ".join("any" if e is None else str(e) for e in expected) + ")"
        hint = f"; {remedy}" if remedy else ""
        raise ShapeError(f"{name}: expected {meaning} = {sizes}, got {tuple(shape)}{hint}")


def expect_floating(name: str, tensor: Tensor) -> None:
    """Raise `ShapeError` unless `tensor` is one of a real floating dtype that PyTorch computes in."""
    expect_tensor(name, tensor)
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
        raise ShapeError(f"{name}: expected a floating dtype, got {tensor.dtype}; convert it with .float()")


def on_hand(tensor: Tensor) -> bool:
    """Whether a check may read values: it waits for no device, breaks no graph, and no transform of `torch.func` runs.

    A subclass may be fake, or spread over machines.
    """
    if torch.compiler.is_compiling() or tensor.device.type != "cpu" or type(tensor) is not Tensor:
        return False
    return torch._C._functorch.peek_interpreter_stack() is None


def expect_levels(levels: int, most: float = math.inf) -> None:
    """Raise `ConfigError` unless the number of splits is an int in `0 .. most`."""
    if not isinstance(levels, int) or not 0 <= levels <= most:
        bound = "" if most == math.inf else f" and <= {most}"
        raise ConfigError(f"levels: expected an int >= 0{bound}, got {levels!r}")


def expect_size(name: str, value: object) -> None:
    """Raise `ConfigError` unless a size is an int >= 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: expected an int >= 1, got {value!r}")


def expect_number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    remedy: str = "",
) -> float:
    """Return a finite real number within its bounds.

    Args:
        name: the argument's name.
        value: what was passed.
        least: the smallest number allowed.
        most: the largest number allowed.
        above: what the number must be larger than.
        below: what the number must be smaller than.
        remedy: what the caller can do about it.

    Raises:
        ConfigError: no real number, not finite, or out of bounds.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if real and least <= value <= most and above < value < below:
        return float(value)
    bounds = ((">=", least), (">", above), ("<=", most), ("<", below))
    wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
    hint = f"; {remedy}" if remedy else ""
    raise ConfigError(f"{name}: expected a finite number{' ' if wanted else ''}{wanted}, got {value!r}{hint}")


def expect_count(name: str, value: Any, least: int = 0, remedy: str = "") -> int:
    """Return a whole number of at least `least`.

    Raises:
        ConfigError: no whole number, or a smaller one.
    """
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = None
    if count is None or count < least:
        hint = f"; {remedy}" if remedy else ""
        raise ConfigError(f"{name}: expected a whole number, at least {least}, got {value!r}{hint}")
    return count
