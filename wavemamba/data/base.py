"""What training reads: sources read at random, and sources that are streamed."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from wavemamba.errors import ConfigError, DataError
from wavemamba.seeds import generator_for

Item = TypeVar("Item")
_MOST_CLASSES = 2**20  # a number beyond is some other number: an identifier, say


class Source(ABC):
    """Pictures or latents with the classes that they belong to.

    Attributes:
        classes: names of the classes, in the order of their numbers; one name where there are no labels.
        shape: `(channels, height, width)` of every example.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]

    @property
    def num_examples(self) -> int | None:
        """Examples in an epoch; None where nobody knows."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the data: another one where examples, their names, order or classes changed.

        It is compared when a run is resumed, on any machine: it must not depend on where the data lie, nor on when
        they were copied there.
        """

    def summary(self) -> str:
        """One or two lines for the start of a run: how many examples of which classes, and what was left out."""
        return f"{type(self).__name__}: {count_of(self)} of {classes_of(self)}"


@dataclass(frozen=True)
class Findings:
    """What a look at the examples of a source found.

    Attributes:
        how: the examples were looked at, in words; empty where they were not.
        faults: index and reason of every example that cannot be read.
    """

    how: str = ""
    faults: dict[int, str] = field(default_factory=dict)


class ExampleSource(Source):
    """A source read at random: an example is a function of its index and of a generator.

    Attributes:
        draws: whether `example` draws from its generator; where it does not, a run makes none.
    """

    draws: bool = True

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

    def look(self, indices: Sequence[int], *, thorough: bool = False) -> Findings:
        """Look for examples that cannot be read, as a run does before its first step.

        Args:
            indices: which ones.
            thorough: read each. Otherwise what the source does by default, at a cost that suits its size; here nothing.
        """
        if not thorough:
            return Findings()
        faults = {index: why for index in indices if (why := fault_of(self.example, index)) is not None}
        return Findings("by reading each", faults)

    def epoch_order(self, generator: torch.Generator) -> Tensor:
        """The order of one epoch, (n,) int64: a permutation drawn from `generator`.

        A source that reads faster in some orders than in others gives one of those.
        """
        return torch.randperm(len(self), generator=generator, dtype=torch.int64, device="cpu")


class StreamedSource(Source):
    """A source that can only be read along its shards: a network stream, say.

    Attributes:
        num_examples: examples in an epoch; None where nobody knows.
        num_shards: pieces that can be opened one by one, >= 1.
        lanes: shards that are read side by side, so that a batch mixes them.
        buffer: rows of a lane that are held in memory and shuffled among themselves.
        skip_unreadable: put the next readable row of the buffer in the place of one that cannot be decoded, with a
            warning that names it. Every row is decoded once more for that, by the thread that reads.
    """

    num_examples: int | None = None
    num_shards: int
    lanes: int = 8
    buffer: int = 256
    skip_unreadable: bool = False

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
        self._places = indices.numpy()  # one number of an array is read 30 times faster than one of a tensor
        self.draws = source.draws
        self.classes = source.classes
        self.shape = source.shape
        self.note = note or f"{len(indices)} of them are used here"

    @property
    def indices(self) -> Tensor:
        """Which examples of the source, (n,) int64."""
        return torch.from_numpy(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Example `indices[index]` of the source."""
        return self.source.example(int(self._places[index]), generator)

    def look(self, indices: Sequence[int], *, thorough: bool = False) -> Findings:
        """As the source looks."""
        places = {int(self._places[index]): index for index in indices}
        found = self.source.look(list(places), thorough=thorough)
        return Findings(found.how, {places[index]: why for index, why in found.faults.items()})

    def epoch_order(self, generator: torch.Generator) -> Tensor:
        """The source's own order, without what is not in this part."""
        place = torch.full((len(self.source),), -1, dtype=torch.int64, device="cpu")
        place[self.indices] = torch.arange(len(self), dtype=torch.int64, device="cpu")
        order = place[self.source.epoch_order(generator)]
        return order[order >= 0]

    def fingerprint(self) -> str:
        """Of the source and of what is taken from it."""
        return digest_of(self.source.fingerprint(), self._places.tobytes())

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
    held = round(len(source) * fraction) if 0 < fraction < 1 else 0
    if not 0 < held < len(source):
        raise ConfigError(
            f"holdout: expected a fraction in [0, 1) that leaves examples on both sides of the split, got "
            f"{fraction} of {len(source)}"
        )
    order = torch.randperm(len(source), generator=generator_for(seed, "hold out"), dtype=torch.int64, device="cpu")
    rest = Part(source, order[held:], f"{len(source) - held} trained on, {held} held out")
    return rest, Part(source, order[:held], f"{held} held out")


def numbered_classes(largest: int, where: str) -> tuple[str, ...]:
    """The names "0" to "largest", for labels that are numbers without names.

    Raises:
        DataError: the largest one is no number of a class.
    """
    if largest >= _MOST_CLASSES:
        raise DataError(
            f"{where}: expected labels that number the classes from 0 on, got {str(largest)[:20]}; number them so, "
            "or name the classes with classes="
        )
    return tuple(map(str, range(largest + 1)))


def fault_of(read: Callable[[Item], object], item: Item) -> str | None:
    """What the `DataError` of `read(item)` says; None where there is none."""
    try:
        read(item)
    except DataError as error:
        return str(error)
    return None


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
