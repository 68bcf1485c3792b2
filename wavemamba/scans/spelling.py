"""How scan orders are written: "snake", "jpeg(path=3)", "reversed(window(tiles=4))", "raster.then(hilbert)"."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, NoReturn

from wavemamba.errors import ConfigError
from wavemamba.scans.registry import COMBINATIONS

_LONGEST = 1000  # characters: deeply nested text would exhaust the stack


@dataclass(frozen=True)
class Word:
    """A registered order with its options."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Combined:
    """ "reversed", "transposed" or "then", and the orders that it combines."""

    how: str
    parts: tuple[Word | Combined, ...]


def spell(name: str, options: tuple[tuple[str, Any], ...]) -> str:
    """Write a registered order with its options."""
    inside = ", ".join(f"{key}={value!r}" for key, value in options)
    return f"{name}({inside})" if inside else name


def parse(text: str) -> Word | Combined:
    """Read the spelling of an order.

    Raises:
        ConfigError: the text is not written so.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise ConfigError(f"scan order: expected its name, got {str(text)[:80]!r}")
    if not set("().=") & set(text):
        return Word(text, {})
    try:
        return _read(ast.parse(text.strip().replace("-", "_"), mode="eval").body, text)
    except (SyntaxError, ValueError):
        return _refuse(text)


def _read(node: ast.expr, text: str) -> Word | Combined:
    match node:
        case ast.Name(name):
            return Word(name, {})
        case ast.Call(ast.Name(how), [inner], []) if how.casefold() in COMBINATIONS:
            return Combined(how.casefold(), (_read(inner, text),))
        case ast.Call(ast.Attribute(first, "then"), [second], []):
            return Combined("then", (_read(first, text), _read(second, text)))
        case ast.Call(ast.Name(name), [], keywords):
            return Word(name, {word.arg: ast.literal_eval(word.value) for word in keywords if word.arg})
    return _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ConfigError(
        f"scan order: expected a name such as 'snake', 'jpeg(path=3)', 'reversed(hilbert)' or 'raster.then(snake)', "
        f"got {text!r}"
    )
