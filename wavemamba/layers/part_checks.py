"""What a block checks of the parts that are injected into it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import Tensor, nn

from wavemamba.checks import expect_shape
from wavemamba.errors import ConfigError, ShapeError


def expect_part(name: str, part: object, positional: Sequence[str], keyword: Sequence[str] = ()) -> nn.Module:
    """Return `part`, or raise unless it is a module that can be called with these arguments.

    Args:
        name: what the part is called in the block, "mixer" for example.
        part: what the caller passed.
        positional: the names of the positional arguments that the block passes.
        keyword: the names of its keyword arguments.

    Raises:
        ConfigError: it is a class, no module, or its `forward` does not take these arguments.
    """
    call = f"{name}({', '.join([*positional, *(f'{key}={key}' for key in keyword)])})"
    if isinstance(part, type):
        raise ConfigError(
            f"{name}: expected a module called as {call}, got the class {part.__name__}; build it: {part.__name__}(...)"
        )
    if not isinstance(part, nn.Module):
        raise ConfigError(
            f"{name}: expected a module called as {call}, got {type(part).__name__}; make it an nn.Module"
        )
    try:
        signature = inspect.signature(part.forward)
    except (TypeError, ValueError):  # compiled code may have no signature to read; it is told by its call
        return part
    try:
        signature.bind(*positional, **dict.fromkeys(keyword))
    except TypeError as error:
        raise ConfigError(
            f"{name}: expected a module called as {call}, got {type(part).__name__}, whose forward takes {signature}; "
            "give its forward these arguments"
        ) from error
    return part


def expect_result(name: str, result: object, expected: tuple[int, ...], meaning: str) -> Tensor:
    """Return what an injected part returned, or raise `ShapeError` unless it is a tensor of the expected shape."""
    if not isinstance(result, Tensor):
        raise ShapeError(
            f"{name}: expected a result {meaning}, got {type(result).__name__}; return one tensor from its forward"
        )
    expect_shape(f"{name}'s result", result, expected, meaning, "the part must keep to the block's shapes")
    return result
