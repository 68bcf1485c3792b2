"""Which classes and seeds a caller asks for."""

from __future__ import annotations

from collections.abc import Sequence

from wavemamba.checks import expect_count
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.names import choose

Classes = Sequence[int | str] | int | str
"""Ids or names; one alone stands for all pictures."""


def class_ids(classes: Classes | None, names: Sequence[str], known: int, null_class: int | None) -> list[int]:
    """Ids of classes that are given by name or id.

    Args:
        classes: what is asked for.
        names: what the classes are called, in order.
        known: how many classes there are.
        null_class: an id beyond them that is allowed as well.

    Raises:
        ConfigError: there is no such class.
    """
    if classes is None:
        return []
    several = hasattr(classes, "__iter__") and not isinstance(classes, str)
    ids = []
    for wanted in classes if several else [classes]:  # type: ignore[union-attr]  # `several` says that it is iterable
        if isinstance(wanted, str) and (wanted in names or not wanted.isdigit()):
            ids.append(list(names).index(choose("class", wanted, names)))
            continue
        number = expect_count("classes", int(wanted) if isinstance(wanted, str) else wanted)
        if number >= known and number != null_class:
            shown = ", ".join(names[:20]) + (", ..." if known > 20 else "")
            raise ConfigError(f"classes: expected names or ids below {known}, got {wanted!r}; there are {shown}")
        ids.append(number)
    return ids


def paired(ids: list[int], seeds: Sequence[int] | int | None) -> tuple[list[int], list[int]]:
    """One class, where there are any, and one seed for each picture.

    Raises:
        ShapeError: not one seed for each class.
    """
    several = hasattr(seeds, "__iter__")
    given = range(max(1, len(ids))) if seeds is None else seeds if several else [seeds]
    numbers = [expect_count("seeds", seed, -(2**63)) for seed in given]  # type: ignore[union-attr]  # iterable by now
    if len(ids) == 1:
        ids = ids * len(numbers)
    if not numbers or (ids and len(ids) != len(numbers)):
        raise ShapeError(f"seeds: expected one for each of {max(1, len(ids))} classes, got {len(numbers)}")
    return ids, numbers
