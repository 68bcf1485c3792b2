"""Kinds of data by name, and `open_source`, which chooses one of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wavemamba.data.base import Source, shown
from wavemamba.data.pictures import PictureView
from wavemamba.data.verify import verified
from wavemamba.errors import ConfigError, DataError
from wavemamba.names import check_names, choose


@dataclass(frozen=True)
class SourceKind:
    """One kind of source that `open_source` can open.

    Attributes:
        name: what `kind=` and the prefix `name:` say.
        open: called with what stands behind the prefix and with the options that were given.
        claims: whether a path without prefix is of this kind.
        about: a few words for error messages.
    """

    name: str
    open: Callable[..., Source]
    claims: Callable[[Path], bool]
    about: str

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that `open` takes."""
        parameters = inspect.signature(self.open).parameters
        return tuple(name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY)


_LOOK = ("verify", "skip_unreadable")
_KINDS: dict[str, SourceKind] = {}
_BUILT_IN: set[str] = set()


def register_source(
    name: str, open: Callable[..., Source], *, claims: Callable[[Path], bool] = lambda path: False, about: str = ""
) -> None:
    """Add a kind of source to those that `open_source` knows.

    Registering a name of one's own again, as a notebook does when a cell runs twice, replaces it.

    Args:
        name: a word that no kind of the library has; `open_source("name:what")` then calls `open("what")`.
        open: `open(what, *, ...)` gives a `Source`; its keyword-only arguments are the options that it takes. Where
            `view` is one of them, the fields of `PictureView` are options as well. `verify` and `skip_unreadable` are
            options of every kind, see `verified`, that does not have its own.
        claims: whether `open_source(path)` without a prefix is of this kind, for paths that exist.
        about: a few words for error messages: what such data look like.

    Raises:
        ConfigError: the name is no word, or a kind of the library has it.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"name: expected a word such as 'my_data', got {name!r}")
    if name.casefold() in _BUILT_IN:
        raise ConfigError(f"name: expected a new name, got {name!r}, which is taken; choose another name")
    _KINDS[name] = SourceKind(name, open, claims, about or name)


def keep_names() -> None:
    """Take the names that are known so far for the library."""
    _BUILT_IN.update(name.casefold() for name in _KINDS)


def source_kinds() -> tuple[SourceKind, ...]:
    """Every kind that is known, the library's own first."""
    return tuple(_KINDS.values())


def open_source(data: str | Path, *, kind: str | None = None, **options: Any) -> Source:
    """Open what the `--data` option of the commands names.

    Args:
        data: "digits"; a path, whose kind is what lies there; or "kind:what", "huggingface:owner/name" for example.
        kind: the kind, where neither the path nor a prefix tells.
        **options: those that the kind takes, for pictures the fields of `PictureView` (`size`, `channels`, `mirror`,
            ...), and those of `verified`: `verify`, `skip_unreadable`. None and False stand for "not given"; without
            the last two nothing is looked at.

    Raises:
        DataError: there is nothing usable.
        ConfigError: the kind cannot be told, or does not take an option.
    """
    kinds = {found.name: found for found in source_kinds()}
    text = str(data)
    if not text:
        raise DataError("data: expected a name or a path, got ''; '.' is the folder that the command was started in")
    prefix, colon, rest = text.partition(":")
    if kind is not None:
        chosen, what = kinds[choose("kind", kind, kinds)], text
    elif colon and prefix in kinds:
        chosen, what = kinds[prefix], rest
    elif isinstance(data, str) and text in kinds:
        if Path(text).exists():
            raise ConfigError(f"data: {text!r} is a kind of data and also a path here; write './{text}' or '{text}:'")
        chosen, what = kinds[text], ""
    else:
        chosen, what = _kind_of(text, kinds), text
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    fields = [field.name for field in dataclasses.fields(PictureView)] if "view" in chosen.options else []
    check_names(given, {*chosen.options, *fields, *_LOOK} - {"view"}, f"option of {chosen.name} data")
    look = {name: given.pop(name) for name in _LOOK if name in given and name not in chosen.options}
    if "view" in chosen.options:
        given["view"] = PictureView(**{name: given.pop(name) for name in fields if name in given})
    source = chosen.open(what, **given)
    return verified(source, **look) if look else source


def _kind_of(text: str, kinds: dict[str, SourceKind]) -> SourceKind:
    path = Path(text)
    try:
        claiming, exists = [kind for kind in kinds.values() if kind.claims(path)], path.exists()
    except (OSError, ValueError) as error:  # a name that cannot be, a folder that may not be read
        raise DataError(f"{shown(path)}: expected a path that can be looked at ({error})") from error
    if len(claiming) == 1:
        return claiming[0]
    if claiming:
        found = " and ".join(kind.about for kind in claiming)
        words = " or ".join(f"kind={kind.name!r}" for kind in claiming)
        raise DataError(f"{shown(path)}: expected one kind of data, found {found}; say which with {words}")
    about = "; ".join(kind.about for kind in kinds.values())
    there = "found none of them there" if exists else "there is none; check the path"
    raise DataError(f"{shown(path)}: expected data ({about}), {there}")
