"""Scan orders by name."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavemamba.errors import ConfigError
from wavemamba.names import check_names
from wavemamba.registry import Registry

Permutation = NDArray[np.int64]
COMBINATIONS = ("reversed", "transposed")

_functions: Registry[Callable[..., Any]] = Registry("scan order", "register_scan_order(name, function) adds one's own")
_checks: dict[str, Callable[..., None]] = {}


def register_scan_order(name: str, function: Callable[..., Any], *, check: Callable[..., None] | None = None) -> None:
    """Let `scan_order`, blocks and configs take an order by name.

    Compiled graphs and saved models refer to an order by its name: a process that loads them registers it first.

    Args:
        name: a Python identifier.
        function: `(H, W, **options) ->` the token (row-major index) visited at each step: H * W integers, each token
            once, for any H, W >= 1. Its keyword arguments are the order's options. It depends on nothing else.
        check: called with the options when an order is made; raises `ConfigError` for what makes no sense.

    Raises:
        ConfigError: the name is taken by another function, or is no identifier.
    """
    if not (isinstance(name, str) and name.isidentifier()) or name.casefold() in COMBINATIONS:
        raise ConfigError(f"name: expected an identifier, and none of {', '.join(COMBINATIONS)}, got {name!r}")
    if not callable(function):
        raise ConfigError(f"function: expected (H, W) -> the token visited at each step, got {function!r}")
    _functions.add(name, function)
    if check is not None:
        _checks[name.casefold()] = check


def list_scan_orders(option: str | None = None) -> list[str]:
    """The names that `scan_order` takes, sorted.

    Args:
        option: only those orders that take this option: "path" for the families of paths.
    """
    return sorted(name for name in _functions if option is None or option in _defaults(name))


def find_order(name: str) -> Callable[..., Any]:
    """The function registered under a name."""
    return _functions.find(name)


def checked_options(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered spelling of a name, and its options without those that have their default value.

    Raises:
        ConfigError: the name or an option is unknown, or a value makes no sense.
    """
    name = _functions.name_of(name)
    defaults = _defaults(name)
    check_names(options, defaults, f"option of the scan order {name!r}:")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for key, default in defaults.items():
        if default is inspect.Parameter.empty and key not in given:
            raise ConfigError(f"{key}: expected a value for the scan order {name!r}, got none; pass {key}=...")
    for key, value in given.items():
        if not _is_plain(value):
            raise ConfigError(f"{key}: expected numbers, text or tuples of them, got {value!r}; they become its name")
    if name in _checks:
        _checks[name](**given)
    return name, {key: given[key] for key in sorted(given) if given[key] != defaults[key]}


def _defaults(name: str) -> dict[str, Any]:
    """The options of an order with their default values."""
    parameters = list(inspect.signature(find_order(name)).parameters.values())[2:]
    return {parameter.name: parameter.default for parameter in parameters}


def _is_plain(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (SyntaxError, ValueError):
        return False
