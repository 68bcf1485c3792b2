"""What the registry knows of a family of models before any of its code is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wavemamba.models.base import Model


@dataclass(frozen=True)
class Published:
    """Weights on the Hugging Face hub.

    Args:
        repository: "owner/name".
        file: the file in it.
        revision: the commit, tag or branch; None: the newest.
    """

    repository: str
    file: str
    revision: str | None = None


@dataclass(frozen=True)
class EntryPoint:
    """One name of a family.

    Args:
        summary: what it is, in a sentence.
        defaults: options that differ from the configuration's own defaults.
        published: its published weights, if any.
        build: called with the overrides instead of the family's class.
    """

    summary: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    published: Published | None = None
    build: Callable[..., Model] | None = None


@dataclass(frozen=True)
class Family:
    """A family of models.

    A room of this package, `wavemamba/models/<family>/`, says so in `entry_points.py` under the name `FAMILY`; nothing
    else has to be told of it.

    Args:
        name: what `config.json` calls it.
        load: returns the class of its models; the one import of the family's code.
        entry_points: the names that `create_model` takes.
    """

    name: str
    load: Callable[[], type[Model]]
    entry_points: Mapping[str, EntryPoint]
