"""What training reads: the two kinds of source, and the table of what `open_source` can open."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavemamba.errors import ConfigError, DataError
from wavemamba.names import check_names, choose
from wavemamba.seeds import generator_for


class Source(ABC):
    """Pictures or latents with the classes that they belong to.

    Attributes:
        classes: names of the classes, in the order of their numbers; one name where there are no labels.
        shape: `(channels, height, width)` of every example.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]

    @property
    @abstractmethod
    def num_examples(self) -> int | None:
        """Examples in an epoch; None where nobody knows."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the data: another one where examples, their names, order or classes changed.

        It is compared when a run is resumed, on any machine: it must not depend on where the data lie, nor on when
        they were copied there.
        """

    def summary(self) -> str:
        """One or two lines for the start of a run: how many examples of which classes, and what was left out."""
        return f"{type(self).__name__}: {count_of(self)} of {classes_of(self)}"


class ExampleSource(Source):
    """A source read at random: an example is a function of its index and of a generator."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Example `index`, augmented by draws from `generator`; without one, as it is.

        Returns:
            A float32 tensor of `shape` on the CPU, and the class number.

        Raises:
            DataError: the example cannot be read.
        """

    @property
    def num_examples(self) -> int:
        """The length."""
        return len(self)

    def epoch_order(self, generator: torch.Generator) -> Tensor:
        """The order of one epoch, (n,) int64: a permutation drawn from `generator`.

        A source that reads faster in some orders than in others gives one of those.
        """
        return torch.randperm(len(self), generator=generator, dtype=torch.int64, device="cpu")


class StreamedSource(Source):
    """A source that can only be read along its shards: a network stream, say.

    Attributes:
        lanes: shards that are read side by side, so that a batch mixes them.
        buffer: rows of a lane that are held in memory and shuffled among themselves.
    """

    lanes: int = 8
    buffer: int = 256

    @property
    @abstractmethod
    def num_shards(self) -> int:
        """Pieces that can be opened one by one, >= 1."""

    @abstractmethod
    def rows(self, shard: int, start: int = 0) -> Iterator[Any]:
        """The undecoded rows of a shard in their fixed order, from row `start` on; they can be pickled.

        Raises:
            DataError: the shard cannot be read.
        """

    @abstractmethod
    def decode(self, row: Any, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """A row as an example, see `ExampleSource.example`."""

    def shard_length(self, shard: int) -> int:
        """Rows of a shard; asked for once of every shard that a resumed run has passed.

        Raises:
            DataError: the shard cannot be read.
        """
        return sum(1 for _ in self.rows(shard))

    def learnt_shard_length(self, shard: int, length: int) -> None:
        """Told of every shard that was read to its end; a source that keeps it saves a resumed run the counting."""


class Part(ExampleSource):
    """Some examples of a source.

    Args:
        source: all of them.
        indices: (n,) int64, which ones and in what order.
        note: for the summary.
    """

    def __init__(self, source: ExampleSource, indices: Tensor, note: str = "") -> None:
        self.source = source
        self.indices = indices
        self.classes = source.classes
        self.shape = source.shape
        self.note = note or f"{len(indices)} of them are used here"

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Example `indices[index]` of the source."""
        return self.source.example(int(self.indices[index]), generator)

    def epoch_order(self, generator: torch.Generator) -> Tensor:
        """The source's own order, without what is not in this part."""
        place = torch.full((len(self.source),), -1, dtype=torch.int64, device="cpu")
        place[self.indices] = torch.arange(len(self), dtype=torch.int64, device="cpu")
        order = place[self.source.epoch_order(generator)]
        return order[order >= 0]

    def fingerprint(self) -> str:
        """Of the source and of what is taken from it."""
        return digest_of(self.source.fingerprint(), self.indices.numpy().tobytes())

    def summary(self) -> str:
        """The source's, and the note."""
        return f"{self.source.summary()}; {self.note}"


def hold_out(source: Source, fraction: float, seed: int) -> tuple[Source, ExampleSource | None]:
    """Split a source into what is trained on and a random `fraction` that is not; None where the fraction is 0.

    Raises:
        ConfigError: a fraction outside [0, 1), one that leaves nothing to train on or holds nothing out, or a source
            that cannot be split.
    """
    if fraction == 0:
        return source, None
    if not isinstance(source, ExampleSource):
        raise ConfigError(
            f"holdout: expected 0 for a streamed source, got {fraction}; it cannot be split, "
            "open another split of the data for evaluation"
        )
    held = round(len(source) * fraction)
    if not 0 < fraction < 1 or not 0 < held < len(source):
        raise ConfigError(
            f"holdout: expected a fraction in [0, 1) that leaves examples on both sides of the split, got "
            f"{fraction} of {len(source)}"
        )
    order = torch.randperm(len(source), generator=generator_for(seed, "hold out"), dtype=torch.int64, device="cpu")
    rest = Part(source, order[held:], f"{len(source) - held} trained on, {held} held out")
    return rest, Part(source, order[:held], f"{held} held out")


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

    def check_options(self, options: dict[str, Any]) -> None:
        """Raise `ConfigError` for an option that this kind does not take."""
        known = [name for name, parameter in inspect.signature(self.open).parameters.items()
                 if parameter.kind is parameter.KEYWORD_ONLY]  # fmt: skip
        check_names(options, known, f"option of {self.name} data")


_KINDS: dict[str, SourceKind] = {}


def register_source(
    name: str, open: Callable[..., Source], *, claims: Callable[[Path], bool] = lambda path: False, about: str = ""
) -> None:
    """Add a kind of source to those that `open_source` knows; a name that is there already is replaced.

    Args:
        name: a word; `open_source("name:what")` then calls `open("what")`.
        open: `open(what, *, ...)` gives a `Source`; its keyword-only arguments are the options that it takes.
        claims: whether `open_source(path)` without a prefix is of this kind, for paths that exist.
        about: a few words for error messages: what such data look like.

    Raises:
        ConfigError: the name is no word.
    """
    if not name.isidentifier():
        raise ConfigError(f"name: expected a word such as 'my_data', got {name!r}")
    _KINDS[name] = SourceKind(name, open, claims, about or name)


def source_kinds() -> tuple[SourceKind, ...]:
    """Every kind that is known, the library's own first."""
    import wavemamba.data

    own = dict(_KINDS)
    for module in pkgutil.iter_modules(wavemamba.data.__path__):
        importlib.import_module(f"wavemamba.data.{module.name}")
    _KINDS.update(own)  # what a user registered before wins over the library's
    return tuple(_KINDS.values())


def open_source(data: str | Path, *, kind: str | None = None, **options: Any) -> Source:
    """Open what the `--data` option of the commands names.

    Args:
        data: "digits"; a path, whose kind is what lies there; or "kind:what", "huggingface:owner/name" for example.
        kind: the kind, where neither the path nor a prefix tells.
        **options: those that the kind takes: `size`, `channels`, `mirror`, `verify`, ... None and False stand for
            "not given".

    Raises:
        DataError: there is nothing usable.
        ConfigError: the kind cannot be told, or does not take an option.
    """
    kinds = {found.name: found for found in source_kinds()}
    text = str(data)
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
    chosen.check_options(given)
    return chosen.open(what, **given)


def _kind_of(text: str, kinds: dict[str, SourceKind]) -> SourceKind:
    path = Path(text)
    claiming = [kind for kind in kinds.values() if kind.claims(path)]
    if len(claiming) == 1:
        return claiming[0]
    if claiming:
        found = " and ".join(kind.about for kind in claiming)
        words = " or ".join(f"kind={kind.name!r}" for kind in claiming)
        raise DataError(f"{shown(path)}: expected one kind of data, found {found}; say which with {words}")
    about = "; ".join(kind.about for kind in kinds.values())
    if not path.exists():
        raise DataError(f"{shown(path)}: expected data ({about}), there is none; check the path")
    raise DataError(f"{shown(path)}: expected data ({about}), found none of them there")


def shown(path: str | Path) -> str:
    """A path for messages and class names: bytes that are no UTF-8 as `\\xe9`, so that it can be printed and saved."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def count_of(source: Source) -> str:
    """The number of examples in words."""
    count = source.num_examples
    return "an unknown number of examples" if count is None else f"{count:,} examples"


def classes_of(source: Source) -> str:
    """The number of classes in words, with the first names."""
    names = source.classes
    if len(names) == 1:
        return f"one class ({names[0]})"
    return f"{len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


def digest_of(*parts: str | bytes) -> str:
    """SHA-256 of the parts, each with its length, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
