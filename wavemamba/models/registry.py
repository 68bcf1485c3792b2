"""Families and names of models: those of this package's rooms, and a user's own."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from wavemamba.errors import CheckpointError, ConfigError
from wavemamba.models.base import Model
from wavemamba.models.family import EntryPoint, Family
from wavemamba.models.hub import download
from wavemamba.models.loading import WeightsSource, load_into
from wavemamba.names import check_names

_Thing = TypeVar("_Thing", bound=Callable[..., Model])
_own: dict[str, Family] = {}
_own_functions: dict[str, EntryPoint] = {}
_checks: list[Callable[[str], None]] = []
_listeners: list[Callable[[str, EntryPoint], None]] = []


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell pattern, sorted.

    Args:
        pattern: for example "dimsum_l*".
    """
    return sorted(fnmatch.filter(entry_points(), pattern))


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Model:
    """Build a model by name.

    Args:
        name: one of `list_models()`.
        pretrained: load the published weights from the Hugging Face hub.
        checkpoint_path: load this file, or this saved folder, instead: the released names or this library's own. Where
            `num_classes`, `class_dropout`, `img_size`, `in_chans` or `out_chans` is given and differs, the weights are
            adapted; a warning, and `model.adapted`, say how. The weights get the model's dtype.
        **overrides: options of the family's configuration, for example `img_size`, `in_chans`, `num_classes`, `depth`,
            and the parts that its class takes, for example `make_block`.

    Raises:
        ConfigError: the name or an override is unknown, or a value is out of range.
        CheckpointError: there are no published weights of that name, or the weights do not fit.

    Returns:
        The model: in evaluation mode where weights were loaded, otherwise in training mode, as torch builds modules.
    """
    weights: WeightsSource | None = checkpoint_path
    if pretrained and weights is None:
        weights = download_published(name)
    return build_model(name, weights, overrides)


def build_model(name: str, weights: WeightsSource | None, options: Mapping[str, Any]) -> Model:
    """See `create_model`; `weights` may also be the parameters themselves."""
    entry = _entry(name)
    if entry.build is not None:
        model = entry.build(**options)
        if not isinstance(model, Model):
            raise ConfigError(f"{name}: expected its function to return a wavemamba.models.Model, got {type(model)}")
    else:
        cls = class_of(name)
        _expect_options(cls, options)
        given = {**entry.defaults, **options}
        parts = {part: given.pop(part) for part in cls.parts if part in given}
        model = cls(cls.config_class(**given), **parts)
    model.entry_point = name
    if weights is not None:
        load_into(model, weights, changed=options)
        model.eval()
    return model


def download_published(name: str, cache_dir: str | Path | None = None) -> str:
    """The path of the published weights of a name, fetched from the hub where they are not here yet.

    Raises:
        CheckpointError: there are none, or they cannot be fetched.
    """
    published = _entry(name).published
    if published is None:
        others = [other for other, found in entry_points().items() if found.published]
        raise CheckpointError(
            f"pretrained: expected a model with published weights ({', '.join(others)}), got {name}; "
            "train it, or name a file in checkpoint_path"
        )
    return download(published.repository, published.file, published.revision, cache_dir)


def class_of(name: str) -> type[Model]:
    """The class of the models of a name that is no function."""
    return next(family.load() for family in families().values() if name in family.entry_points)


@overload
def register_model(thing: _Thing, *, entry_points: Mapping[str, Mapping[str, Any]] | None = None) -> _Thing: ...


@overload
def register_model(*, entry_points: Mapping[str, Mapping[str, Any]] | None = None) -> Callable[[_Thing], _Thing]: ...


def register_model(
    thing: _Thing | None = None, *, entry_points: Mapping[str, Mapping[str, Any]] | None = None
) -> _Thing | Callable[[_Thing], _Thing]:
    """Make a model of one's own known to `create_model`, `list_models`, `load_pretrained` and timm.

    Also a decorator. Registering the same class or function again, as a notebook does when a cell runs twice, replaces
    it.

    Args:
        thing: a subclass of `wavemamba.models.Model`, which names its `family`; or a function that builds a model,
            which is then known by its own name.
        entry_points: for a class: the names to be known, each with its options; None: the family's name alone.

    Raises:
        ConfigError: it is neither, or a name is taken.
    """
    if thing is None:
        return functools.partial(register_model, entry_points=entry_points)
    family: Family | None = None
    if isinstance(thing, type) and issubclass(thing, Model):
        family = _family_from(thing, entry_points)
        added = dict(family.entry_points)
    elif callable(thing) and not isinstance(thing, type) and entry_points is None:
        added = _entry_from(thing)
    else:
        raise ConfigError(
            f"register_model: expected a subclass of wavemamba.models.Model, or a function without entry_points, got "
            f"{thing!r}"
        )
    for check in _checks:
        for name in added:
            check(name)
    if family is None:
        _own_functions.update(added)
    else:
        _own[family.name] = family
    for name, entry in added.items():
        for listener in _listeners:
            listener(name, entry)
    return thing


def entry_points() -> dict[str, EntryPoint]:
    """Every name that `create_model` knows; no family's code is imported for it."""
    found = dict(_own_functions)
    for family in families().values():
        found.update(family.entry_points)
    return found


def families() -> dict[str, Family]:
    """Every family by name: the rooms of this package, then what users registered."""
    return {**library_families(), **_own}


def family_of(name: str) -> type[Model]:
    """The class of a family's models.

    Raises:
        ConfigError: no family of that name is known.
    """
    known = families()
    if name not in known:
        raise ConfigError(
            f"family: expected one of {', '.join(known)}, got {name!r}; a family of your own is registered "
            "with wavemamba.register_model first"
        )
    return known[name].load()


def on_registration(listener: Callable[[str, EntryPoint], None], check: Callable[[str], None]) -> None:
    """Call `listener(name, entry_point)` for every name that is registered from now on.

    Args:
        listener: called once the name is registered.
        check: called with the name before; what it raises keeps the name from being registered.
    """
    _listeners.append(listener)
    _checks.append(check)


@functools.lru_cache(maxsize=1)
def library_families() -> dict[str, Family]:
    """The families of this package's rooms, by name."""
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.ispkg:
            family: Family = importlib.import_module(f"wavemamba.models.{module.name}.entry_points").FAMILY
            found[family.name] = family
    return found


def _options_of(cls: type[Model]) -> list[str]:
    return [*cls.config_class.option_names(), *cls.parts]


def _expect_options(cls: type[Model], options: Iterable[str]) -> None:
    """Raise `ConfigError` for an option that the family does not have, naming those that do."""
    own = _options_of(cls)
    for option in options:
        if option in own:
            continue
        others = [name for name, family in families().items() if option in _options_of(family.load())]
        if others:
            raise ConfigError(
                f"{option}: expected an option of {cls.family} ({', '.join(sorted(own))}), got one of "
                f"{', '.join(sorted(others))}; leave it out, or choose a model of such a family"
            )
    check_names(list(options), own)


def _entry(name: str) -> EntryPoint:
    known = entry_points()
    check_names([str(name)], known, "model")
    return known[name]


def _family_from(cls: type[Model], names: Mapping[str, Mapping[str, Any]] | None) -> Family:
    family = getattr(cls, "family", None)
    if not isinstance(family, str) or not family or not hasattr(cls, "config_class"):
        raise ConfigError(f"register_model: expected {cls.__name__} to name its family and its config_class")
    before = families().get(family)
    if before is not None and not (family in _own and _same(before.load(), cls)):
        raise ConfigError(f"family: expected a name that is not taken, got {family!r}; choose another")
    summary = (cls.__doc__ or family).strip().partition("\n")[0]
    defaults: Mapping[str, Mapping[str, Any]] = {family: {}} if names is None else names
    added = {name: EntryPoint(summary, dict(options)) for name, options in defaults.items()}
    for options in defaults.values():
        check_names(options, _options_of(cls))
    _expect_free(added, before.entry_points if before else ())
    return Family(family, lambda: cls, added)


def _entry_from(function: Callable[..., Model]) -> dict[str, EntryPoint]:
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise ConfigError(f"register_model: expected a function with a name, got {function!r}")
    before = _own_functions.get(name)
    if before is None or before.build is None or not _same(before.build, function):
        _expect_free([name], ())
    summary = (function.__doc__ or name).strip().partition("\n")[0]
    return {name: EntryPoint(summary, build=function)}


def _expect_free(names: Iterable[str], own: Iterable[str]) -> None:
    taken = entry_points().keys() - set(own)
    for name in names:
        if name in taken:
            raise ConfigError(f"model: expected a name that is not taken, got {name!r}; choose another")


def _same(before: Any, now: Any) -> bool:
    return (before.__module__, before.__qualname__) == (now.__module__, now.__qualname__)
