"""Command lines made from a configuration whose fields say everything about themselves."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, TypeVar

from wavemamba.commands.parser import RecipeParser, number, parse_overrides
from wavemamba.training.options import Option, options_of

Config = TypeVar("Config")


def add_options(parser: RecipeParser, config: type[Any], required: tuple[str, ...] = ()) -> None:
    """Give `parser` an option for every field of `config`.

    Args:
        parser: the command's.
        config: a dataclass made of `option` fields.
        required: fields that the command line or the recipe has to name.
    """
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        about: Option = field.metadata["option"]
        if about.group not in groups:
            groups[about.group] = parser.add_argument_group(about.group)
        name = "--" + (about.flag or field.name.replace("_", "-"))
        given: dict[str, Any] = {"dest": field.name, "help": about.help, "required": field.name in required}
        if about.kind is dict:
            given |= {"nargs": "+", "action": "extend", "default": [], "metavar": "NAME=VALUE"}
        elif about.kind is bool:
            given |= {"action": argparse.BooleanOptionalAction, "default": field.default}
        else:
            given |= {"type": _type_of(about), "choices": about.choices, "default": field.default}
            given |= {"nargs": "+"} if about.many else {}
        groups[about.group].add_argument(name, **given)


def config_from(config: type[Config], arguments: argparse.Namespace) -> Config:
    """The configuration that a command line asks for.

    Raises:
        ConfigError: a value is refused, or values exclude each other.
    """
    values = {name: getattr(arguments, name) for name in options_of(config)}
    for name, about in options_of(config).items():
        if about.kind is dict:
            values[name] = parse_overrides(values[name])
    return config(**values)


def _type_of(about: Option) -> Any:
    if about.kind in (int, float):
        least = -float("inf") if about.least is None else about.least
        return number(about.kind, least, about.below, above=about.above)
    return about.kind
