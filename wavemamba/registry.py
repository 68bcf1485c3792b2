"""What users choose by name and may add to."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Generic, TypeVar

from wavemamba.errors import ConfigError
from wavemamba.names import choose

T = TypeVar("T")


class Registry(Generic[T]):
    """Things under names; a name keeps its first meaning, because saved models and compiled graphs refer to it.

    Args:
        what: what the things are, for errors ("scan order").
        remedy: how a user adds one.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> None:
        """Put a thing under a name; the same thing may be put there again.

        Raises:
            ConfigError: the name has another meaning already, or is no word of letters, digits, "_" and ".".
        """
        if not isinstance(name, str) or not name.replace("_", "").replace(".", "").isalnum():
            raise ConfigError(f'{self.what}: expected a name of letters, digits, "_" and ".", got {name!r}')
        name = name.casefold()
        if self._things.setdefault(name, thing) != thing:
            raise ConfigError(f"{self.what}: expected a new name, got {name!r}, which is taken; choose another name")

    def find(self, name: str) -> T:
        """The thing of this name, whatever its case and hyphens; an unknown name is told the nearest one."""
        if name in self._things:
            return self._things[name]
        try:
            return self._things[choose(self.what, name, self._things)]
        except ConfigError as error:
            raise ConfigError(f"{error}; {self.remedy}") from None

    def name_of(self, name: str) -> str:
        """The name as it was registered, for one that is spelt in another case or with hyphens."""
        thing = self.find(name)
        return next(known for known, other in self._things.items() if other is thing)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._things))


def import_folder(package: str, path: list[str]) -> None:
    """Import every module of a package, so that each registers what it holds: a new file needs no entry elsewhere."""
    for module in sorted(pkgutil.iter_modules(path), key=lambda module: module.name):
        importlib.import_module(f"{package}.{module.name}")
