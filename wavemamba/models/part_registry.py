"""Parts of models that users register under a name, so that a configuration can name them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn

from wavemamba.errors import ConfigError
from wavemamba.names import choose
from wavemamba.registry import Registry

PartMaker = Callable[[Any, Any], nn.Module]
_Maker = TypeVar("_Maker", bound=PartMaker)
PART_KINDS = ("mixer", "fusion", "attention", "mlp", "norm")
_registered: dict[str, Registry[PartMaker]] = {
    kind: Registry(kind, f'add one with wavemamba.models.register_part("{kind}", name)') for kind in PART_KINDS
}
_built_in: dict[str, set[str]] = {kind: set() for kind in PART_KINDS}


def register_part(kind: str, name: str) -> Callable[[_Maker], _Maker]:
    """Make a part known by a name, which the option of that kind then takes: `create_model(..., mixer="mine")`.

    A decorator of a function `(config, spec) -> nn.Module`, where `config` is the model's configuration and `spec` says
    what is particular to the block. The folder of a saved model holds the name alone: register it before loading.

    Args:
        kind: "mixer", "fusion", "attention", "mlp" or "norm".
        name: a name that is not taken.

    Raises:
        ConfigError: the kind is unknown, or the name is taken by another function.
    """
    kind = choose("kind", kind, PART_KINDS)

    def register(make: _Maker) -> _Maker:
        if name in _built_in[kind]:
            raise ConfigError(f"{kind}: expected a new name, got {name!r}, which is taken; choose another name")
        _registered[kind].add(name, make)
        return make

    return register


def reserve(kind: str, names: Iterable[str]) -> None:
    """Keep the names of a family's own parts from being registered."""
    _built_in[kind].update(names)


def part_names(kind: str, built_in: Iterable[str]) -> tuple[str, ...]:
    """The names that an option of a kind takes."""
    return (*built_in, *_registered[kind])


def registered_part(kind: str, name: str) -> PartMaker | None:
    """What was registered under a name, or None."""
    return _registered[kind].find(name) if name in tuple(_registered[kind]) else None
