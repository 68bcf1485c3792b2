"""Parts of models under names, so that a configuration can name them: the library's own, and those of users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from wavemamba.names import choose
from wavemamba.registry import Registry

PartMaker = Callable[[Any, Any], nn.Module | None]
_Maker = TypeVar("_Maker", bound=PartMaker)
PART_KINDS = ("positions", "spatial", "frequency", "mixer", "fusion", "attention", "mlp", "norm")
_parts: dict[str, Registry[PartMaker]] = {
    kind: Registry(kind, f'add one with wavemamba.models.register_part("{kind}", name)') for kind in PART_KINDS
}
_built_in: set[tuple[str, str]] = set()


def register_part(kind: str, name: str) -> Callable[[_Maker], _Maker]:
    """Make a part known by a name, which the option of that kind then takes: `create_model(..., mixer="mine")`.

    A decorator of a function `(config, spec) -> nn.Module`, where `config` is the model's configuration and `spec` says
    what is particular to the block; for "positions", which belong to no block, it is None. The folder of a saved model
    holds the name alone: register it before loading.

    Args:
        kind: "positions", "spatial", "frequency", "mixer", "fusion", "attention", "mlp" or "norm".
        name: a name that is not taken.

    Raises:
        ConfigError: the kind is unknown, or the name is taken by another function.
    """
    kind = choose("kind", kind, PART_KINDS)

    def register(make: _Maker) -> _Maker:
        _parts[kind].add(name, make)
        return make

    return register


def built_in_part(kind: str, name: str) -> Callable[[_Maker], _Maker]:
    """`register_part` for a part of the library: a saved model need not say that it takes one."""
    _built_in.add((kind, name))
    return register_part(kind, name)


def part_names(kind: str) -> tuple[str, ...]:
    """The names that an option of a kind takes, the library's own first."""
    return tuple(_parts[kind])


def find_part(kind: str, name: str) -> PartMaker:
    """What makes the part of a name, or None for a name that stands for no part; an unknown one is a `ConfigError`."""
    return _parts[kind].find(name)


def users_parts(names: dict[str, str]) -> dict[str, PartMaker]:
    """Of parts by kind and name, those that are none of the library's: what makes them, by kind."""
    return {kind: find_part(kind, name) for kind, name in names.items() if (kind, name) not in _built_in}
