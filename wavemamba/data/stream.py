"""The order in which a run sees its data: a function of the seed and of how far the run is, and of nothing else."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from wavemamba.data.ahead import read_ahead
from wavemamba.data.base import ExampleSource, Source, StreamedSource
from wavemamba.data.lanes import Lanes
from wavemamba.errors import ConfigError, DataError, WavemambaError
from wavemamba.seeds import derive_seed, generator_for


class ExampleStream(Dataset[tuple[Tensor, int]]):
    """Example number `k = 0, 1, 2, ...` of an endless run over `source`, shuffled anew in every epoch.

    `stream[k]` depends on `(seed, k)` only: the epoch is `k // len(source)`, its order is the source's `epoch_order`
    drawn for `(seed, epoch)`, the augmentation is drawn for `(seed, k)`.

    Args:
        source: the data.
        seed: of orders and augmentation.

    Raises:
        DataError: the source is empty.
    """

    def __init__(self, source: ExampleSource, seed: int) -> None:
        if not len(source):
            raise DataError("source: expected examples, there are none")
        self.source = source
        self.seed = seed
        self._order: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        epoch, position = divmod(k, len(self.source))
        if self._order[0] != epoch:
            self._order = (epoch, self.source.epoch_order(generator_for(self.seed, "order", epoch)).numpy())
        generator = generator_for(self.seed, "example", k) if self.source.draws else None
        return self.source.example(int(self._order[1][position]), generator)


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


class _StreamedRows(Sampler[list[tuple[int, Any]]]):
    """What `StepBatches` gives for a streamed source: beside every example's number its undecoded row.

    The rows are read here, by a thread of the process that hands out work, two steps ahead; its loader workers decode
    them.
    """

    def __init__(self, source: StreamedSource, seed: int, numbers: StepBatches) -> None:
        self.numbers = numbers
        self.lanes = Lanes(source, seed, numbers.batch_size)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[tuple[int, Any]]]:
        parts = len(self.numbers.slices)
        steps = self.lanes.steps(self.numbers.steps.start, self.numbers.slices)
        rows = read_ahead(itertools.islice(steps, len(self)), 2 * parts)
        for batch in self.numbers:
            yield list(zip(batch, next(rows), strict=True))


class _Decoder(Dataset[tuple[Tensor, int]]):
    """Decodes the rows of a streamed source, with the augmentation of `(seed, k)`."""

    def __init__(self, source: StreamedSource, seed: int) -> None:
        self.source = source
        self.seed = seed

    def __getitem__(self, item: Any) -> tuple[Tensor, int]:
        k, row = item
        return self.source.decode(row, generator_for(self.seed, "example", k))


class Batches:
    """The micro-batches of one process, `(examples (b, c, h, w), labels (b,) int64)` on the CPU, from one step on.

    What comes depends on source, seed, batch size and step alone: a run that is started again at step k sees what the
    unbroken one saw, bit for bit, with any number of workers and processes.

    Args:
        source: the data.
        seed: of order and augmentation.
        batch_size: examples in one optimiser step, all processes and micro-batches together.
        start: first step.
        stop: the step after the last.
        rank: this process.
        processes: how many there are.
        accumulate: micro-batches in a step.
        workers: processes that decode; they change the speed and nothing else.
        pin_memory: page-locked batches, for copies to a GPU.

    Raises:
        ConfigError: the batch does not split evenly, or the source is of neither kind.
        DataError: the source is empty.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        batch_size: int,
        start: int,
        stop: int,
        rank: int = 0,
        processes: int = 1,
        accumulate: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        numbers = StepBatches(batch_size, start, stop, rank=rank, processes=processes, accumulate=accumulate)
        dataset: Dataset[tuple[Tensor, int]]
        sampler: Sampler[Any]
        if isinstance(source, ExampleSource):
            dataset, sampler = ExampleStream(source, seed), numbers
        elif isinstance(source, StreamedSource):
            dataset, sampler = _Decoder(source, seed), _StreamedRows(source, seed, numbers)
        else:
            raise ConfigError(f"source: expected an ExampleSource or a StreamedSource, got {type(source).__name__}")
        self._loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            pin_memory=pin_memory,
            collate_fn=collate,
            worker_init_fn=_leave_signals_to_the_parent,
            # The loader draws a base seed for its workers: never from the global generator that training uses.
            generator=torch.Generator(device="cpu").manual_seed(derive_seed(seed, "workers")),
        )
        self._count = len(numbers)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The loader makes tensors of its own, where the caller's default device says; that would move the seeds.
        with torch.device("cpu"):
            batches = iter(self._loader)
        while True:
            try:
                with torch.device("cpu"):
                    batch = next(batches, None)
            except WavemambaError as error:
                if not self._loader.num_workers:
                    raise
                # A worker's error comes with its whole traceback as the message; the cause keeps that.
                last_line = f"\n{type(error).__module__}.{type(error).__qualname__}: "
                raise type(error)(str(error).rpartition(last_line)[2].strip()) from error
            if batch is None:
                return
            yield batch


def collate(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Examples as one batch: (b, c, h, w) as they are, and (b,) int64 labels, on the CPU.

    Raises:
        DataError: the examples differ in shape.
    """
    shapes = {tuple(pixels.shape) for pixels, _ in examples}
    if len(shapes) != 1:
        raise DataError(f"source: expected examples of one shape, got {sorted(shapes)} in one batch")
    labels = torch.tensor([int(label) for _, label in examples], dtype=torch.int64, device="cpu")
    return torch.stack([pixels for pixels, _ in examples]), labels


def _leave_signals_to_the_parent(worker: int) -> None:
    """A signal to the whole process group stops the run in order: the workers go on until the parent has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
