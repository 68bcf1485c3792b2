"""Fields of a configuration that say everything about themselves: help, range, choices, who may change them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from wavemamba.errors import ConfigError
from wavemamba.names import choose

Change = Literal["never", "always", "constant schedule"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field's metadata says under the key `option`.

    Attributes:
        help: one line.
        group: the heading under which a command lists it.
        kind: of one value; `dict` for a mapping of names to values.
        change: whether a resumed run may change it: "never" without `accept_changes`, "always", or only under a
            "constant schedule".
        least: smallest value, for numbers.
        below: what every value is smaller than, for numbers.
        above: whether `least` itself is refused.
        choices: what a word may be; a registry takes in what is added to it later.
        many: several values, kept as a tuple.
        flag: the command's word for it, without dashes; None: the field's name.
    """

    help: str
    group: str
    kind: type
    change: Change = "never"
    least: float | None = None
    below: float = float("inf")
    above: bool = False
    choices: Iterable[str] | None = None
    many: bool = False
    flag: str | None = None

    def checked(self, name: str, value: Any) -> Any:
        """The value as the configuration keeps it.

        Raises:
            ConfigError: it is of another kind, out of range, or no choice.
        """
        if not self.many:
            return self._one(name, value)
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ConfigError(f"{name}: expected several values in a tuple, got {value!r}; write ({value!r},)")
        return tuple(self._one(name, item) for item in value)

    def _one(self, name: str, value: Any) -> Any:
        if self.choices is not None:
            return choose(name, value, self.choices)
        if self.kind is dict:
            if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
                raise ConfigError(f"{name}: expected a dictionary of names to values, got {value!r}")
            return _plain(name, value)
        if self.kind in (int, float):
            return self._number(name, value)
        if not isinstance(value, self.kind):
            raise ConfigError(f"{name}: expected {self.kind.__name__}, got {value!r}")
        return value

    def _number(self, name: str, value: Any) -> int | float:
        wanted = "an integer" if self.kind is int else "a number"
        if self.least is not None:
            wanted += f" {'>' if self.above else '>='} {self.least:g}"
        if self.below < float("inf"):
            wanted += f" and < {self.below:g}"
        kinds = int if self.kind is int else (int, float)
        good = isinstance(value, kinds) and not isinstance(value, bool) and value == value and value < self.below
        if good and self.least is not None:
            good = value > self.least if self.above else value >= self.least
        if not good:
            raise ConfigError(f"{name}: expected {wanted}, got {value!r}")
        return value if self.kind is int else float(value)


def option(default: Any, help: str, group: str, kind: type | None = None, **more: Any) -> Any:
    """A dataclass field with an `Option` in its metadata; `kind` is that of the default where it is not given."""
    if kind is None:
        kind = type(default[0]) if isinstance(default, tuple) else type(default)
    metadata = {"option": Option(help=help, group=group, kind=kind, **more)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def options_of(config: Any) -> dict[str, Option]:
    """The options of a configuration, or of its class, by field name."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(config)}


def check_options(config: Any) -> None:
    """Check every field of a frozen configuration; None is kept where it is the default."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None and field.default is None:
            continue
        object.__setattr__(config, field.name, field.metadata["option"].checked(field.name, value))


def _plain(name: str, value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name}: expected numbers, words and lists, which a checkpoint can hold ({error}); override build_model "
            "of the Trainer for parts of another kind"
        ) from error
    return dict(value)
