"""The order of a streamed source: shards side by side in lanes, shuffled in blocks, resumed at any step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from wavemamba.data.base import StreamedSource
from wavemamba.errors import DataError
from wavemamba.seeds import generator_for


class UnreadableRowWarning(UserWarning):
    """A row of a stream cannot be decoded, and another one took its place."""


class Lanes:
    """The rows that the steps of an endless run consume.

    The shards are shuffled anew in every epoch and dealt to the lanes in turn. A lane is an endless sequence of rows,
    those of its shards one after another; each block of `source.buffer` rows is shuffled. Every step takes as many
    rows from each lane. All of it is a function of `(seed, batch_size)`: nothing has to be stored to go on at a step,
    and nothing before the current block of each lane is read, where the lengths of the shards are known.

    Args:
        source: what is streamed.
        seed: of the order.
        batch_size: examples in one step; the lanes are the largest divisor of it that is <= `source.lanes` and the
            number of shards.
    """

    def __init__(self, source: StreamedSource, seed: int, batch_size: int) -> None:
        most = min(source.lanes, source.num_shards, batch_size)
        self.source = source
        self.seed = seed
        self.count = next(n for n in range(most, 0, -1) if batch_size % n == 0)
        self.width = batch_size // self.count
        self._lengths: dict[int, int] = {}

    def steps(self, start: int, slices: list[slice]) -> Iterator[list[Any]]:
        """For every step from `start` on, and for each of `slices` of its batch, the rows.

        Only the lanes that the slices touch are read.
        """
        wanted = [i for part in slices for i in range(part.start, part.stop)]
        lanes = {lane: self.rows(lane, start * self.width) for lane in sorted({i // self.width for i in wanted})}
        while True:
            batch = {lane: list(islice(rows, self.width)) for lane, rows in lanes.items()}
            for part in slices:
                yield [batch[i // self.width][i % self.width] for i in range(part.start, part.stop)]

    def rows(self, lane: int, start: int) -> Iterator[Any]:
        """The endless rows of a lane, in their shuffled order, from number `start` on."""
        size = max(1, self.source.buffer)
        block, skipped = divmod(start, size)
        plain = self._plain_rows(lane, block * size)
        while True:
            rows = list(islice(plain, size))
            generator = generator_for(self.seed, "lane", lane, block)
            order = torch.randperm(size, generator=generator, dtype=torch.int64, device="cpu").tolist()
            yield from (self._readable(rows, order, place) for place in range(skipped, size))
            block, skipped = block + 1, 0

    def _readable(self, rows: list[Any], order: list[int], place: int) -> Any:
        """The row at a place of a block's order, or the next one after it that can be decoded where that is wanted."""
        if not self.source.skip_unreadable:
            return rows[order[place]]
        for number in (*order[place:], *order[:place]):
            if (fault := self._fault(rows[number])) is None:
                return rows[number]
            warnings.warn(f"left out: {fault}", UnreadableRowWarning, stacklevel=2)
        raise DataError(f"stream: expected readable rows, all {len(rows)} of a buffer cannot be read")

    def _fault(self, row: Any) -> DataError | None:
        try:
            self.source.decode(row)
        except DataError as error:
            return error
        return None

    def _plain_rows(self, lane: int, start: int) -> Iterator[Any]:
        """The rows of a lane as they lie in its shards, from number `start` on."""
        turn, empty = 0, 0
        while start and start >= (length := self._length(self._shard(lane, turn))):
            start, turn = start - length, turn + 1
        while True:
            shard, count = self._shard(lane, turn), start
            for row in self.source.rows(shard, start):
                yield row
                count += 1
            self._lengths[shard] = count
            self.source.learnt_shard_length(shard, count)
            empty = 0 if count else empty + 1
            if empty > self.source.num_shards * self.count:
                raise DataError("stream: expected rows, all shards of a lane are empty; check the data")
            turn, start = turn + 1, 0

    def _shard(self, lane: int, turn: int) -> int:
        """The shard that a lane reads as its number `turn`."""
        epoch, place = divmod(lane + turn * self.count, self.source.num_shards)
        generator = generator_for(self.seed, "shards", epoch)
        return int(torch.randperm(self.source.num_shards, generator=generator, dtype=torch.int64, device="cpu")[place])

    def _length(self, shard: int) -> int:
        if shard not in self._lengths:
            self._lengths[shard] = self.source.shard_length(shard)
        return self._lengths[shard]
