"""Choosing an option by name: a misspelt one lists the choices and the nearest of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from wavemamba.errors import ConfigError


def choose(what: str, name: str | None, choices: Iterable[str]) -> str:
    """Return the choice that `name` spells, whatever its case, its hyphens and its underscores.

    Args:
        what: what is being chosen, for the error ("path", "solver").
        name: what the caller wrote; None stands for "none".
        choices: the names that exist.

    Raises:
        ConfigError: no choice is spelt so.
    """
    table = {_key(choice): choice for choice in choices}
    wanted = _key("none" if name is None else str(name))
    if wanted in table:
        return table[wanted]
    near = difflib.get_close_matches(wanted, table, n=1, cutoff=0.5)
    hint = f"; did you mean {table[near[0]]!r}?" if near else ""
    raise ConfigError(f"{what}: expected one of {', '.join(map(repr, table.values()))}, got {name!r}{hint}")


def _key(name: str) -> str:
    return name.casefold().replace("-", "_")
