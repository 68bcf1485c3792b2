"""The order in which a run sees its data: a function of the seed and of how far the run is, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from wavemamba.data.pictures import ExampleSource
from wavemamba.errors import ConfigError
from wavemamba.seeds import derive_seed, generator_for


class ExampleStream(Dataset[tuple[Tensor, int]]):
    """Example number `k = 0, 1, 2, ...` of an endless run over `source`, shuffled anew in every epoch.

    `stream[k]` depends on `(seed, k)` only: the epoch is `k // len(source)`, its order a permutation drawn for
    `(seed, epoch)`, the augmentation drawn for `(seed, k)`. A run is resumed by its step number alone, and the same
    examples come whatever the number of processes or workers.

    Args:
        source: the data.
        seed: of orders and augmentation.
    """

    def __init__(self, source: ExampleSource, seed: int) -> None:
        self.source = source
        self.seed = seed
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        epoch, position = divmod(k, len(self.source))
        if self._order[0] != epoch:
            order = torch.randperm(len(self.source), generator=generator_for(self.seed, "order", epoch))
            self._order = (epoch, order)
        return self.source.example(int(self._order[1][position]), generator_for(self.seed, "example", k))


class StepBatches(Sampler[list[int]]):
    """The example numbers of every micro-batch that one process reads, from step `start` to step `stop`.

    Step `s` consumes the examples `s * batch_size ... (s + 1) * batch_size - 1`, whole, over all processes and
    accumulation steps; micro-batch `m` of process `rank` is the `(m * processes + rank)`-th equal slice of them.

    Args:
        batch_size: examples in one optimiser step, all processes together.
        start: first step.
        stop: the step after the last.
        rank: this process.
        processes: how many there are.
        accumulate: micro-batches in a step.

    Raises:
        ConfigError: the batch does not split evenly.
    """

    def __init__(
        self, batch_size: int, start: int, stop: int, *, rank: int = 0, processes: int = 1, accumulate: int = 1
    ) -> None:
        self.slices = slices_of_batch(batch_size, rank=rank, processes=processes, accumulate=accumulate)
        self.batch_size = batch_size
        self.steps = range(start, stop)

    def __len__(self) -> int:
        return len(self.steps) * len(self.slices)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            for part in self.slices:
                yield [step * self.batch_size + i for i in range(part.start, part.stop)]


def slices_of_batch(batch_size: int, *, rank: int, processes: int, accumulate: int) -> list[slice]:
    """Which part of a step's batch process `rank` works on in each of its `accumulate` micro-batches.

    Raises:
        ConfigError: `batch_size` is not a positive multiple of `processes * accumulate`.
    """
    parts = processes * accumulate
    if batch_size <= 0 or batch_size % parts:
        raise ConfigError(
            f"batch_size: expected a multiple of processes * accumulate = {processes} * {accumulate}, got {batch_size}"
        )
    size = batch_size // parts
    starts = [(micro * processes + rank) * size for micro in range(accumulate)]
    return [slice(start, start + size) for start in starts]


def batch_loader(
    stream: ExampleStream, batches: StepBatches, *, workers: int = 0, pin_memory: bool = False
) -> DataLoader[tuple[Tensor, int]]:
    """A loader of `(examples (b, ...), labels (b,))` micro-batches; `workers` change the speed and nothing else."""
    return DataLoader(
        stream,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        # The loader draws a base seed for its workers: never from the global generator that training uses.
        generator=torch.Generator().manual_seed(derive_seed(stream.seed, "workers")),
        persistent_workers=False,
    )
