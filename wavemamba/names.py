"""Names that users spell: a misspelt one lists the choices and the nearest of them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from wavemamba.errors import ConfigError

_MOST_LISTED = 16


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
    near = nearest(wanted, table.values())
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = [*table.values()][:_MOST_LISTED]
    more = f" (and {len(table) - len(listed)} more)" if len(table) > len(listed) else ""
    raise ConfigError(f"{what}: expected one of {', '.join(map(repr, listed))}{more}, got {name!r}{hint}")


def nearest(name: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """The choices that are spelt most like `name`, the nearest first; none where nothing is near."""
    table = {_key(choice): choice for choice in choices}
    return [table[key] for key in difflib.get_close_matches(_key(str(name)), table, n=count, cutoff=0.5)]


def check_names(given: Collection[str], known: Collection[str], what: str = "option") -> None:
    """Raise `ConfigError` for a name that is not known, naming the nearest ones.

    Args:
        given: what the caller wrote.
        known: the names that exist.
        what: what the names are of, for the error.
    """
    for name in given:
        if name not in known:
            near = nearest(name, known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known names: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown {what} {name!r}; {hint}")


def _key(name: str) -> str:
    return name.casefold().replace("-", "_")
