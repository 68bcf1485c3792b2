"""The order in which data are seen: a function of seed and step, whatever reads it."""

import contextlib
import itertools

import pytest
import torch
from data.made import Counting, CountingStream

from wavemamba.data import Batches, Digits, ExampleStream, StepBatches, hold_out, open_source, slices_of_batch
from wavemamba.data.ahead import read_ahead
from wavemamba.data.lanes import Lanes, UnreadableRowWarning
from wavemamba.errors import ConfigError, DataError
from wavemamba.seeds import derive_seed


def test_digits_are_the_real_ones():
    digits = Digits()
    assert len(digits) == 1797
    assert digits.images.shape == (1797, *digits.shape)
    assert digits.images.min() == -1
    assert digits.images.max() == 1
    image, label = digits.example(0)
    assert label == 0
    assert digits.classes[label] == "0"
    assert torch.equal(image, digits.images[0])


def test_held_out_part_is_disjoint_and_fixed():
    rest, held = hold_out(Counting(100), 0.2, seed=3)
    again = hold_out(Counting(100), 0.2, seed=3)[1]
    assert len(held) == 20
    assert {*rest.indices.tolist()}.isdisjoint(held.indices.tolist())
    assert torch.equal(held.indices, again.indices)
    assert held.classes == ("a", "b")


def test_every_epoch_shows_everything_once_in_another_order():
    stream = ExampleStream(Counting(10), seed=0)
    epochs = [[int(stream[k][0]) for k in range(10 * e, 10 * e + 10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_stream_is_a_function_of_seed_and_position():
    stream, other = ExampleStream(Counting(10), seed=0), ExampleStream(Counting(10), seed=1)
    forwards = [stream[k][0].item() for k in range(25)]
    assert forwards == [stream[k][0].item() for k in reversed(range(25))][::-1]
    assert forwards != [other[k][0].item() for k in range(25)]


SOURCES = {"random": lambda: Counting(7), "streamed": lambda: CountingStream([5, 0, 9, 1, 4])}


def seen(source, start, stop, **options):
    batches = Batches(source, seed=5, batch_size=12, start=start, stop=stop, **options)
    found = [(x.flatten().tolist(), y.tolist()) for x, y in batches]
    assert len(found) == len(batches)
    return found


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_a_loader_gives_what_the_unbroken_one_gives(kind, workers):
    whole = seen(SOURCES[kind](), 0, 9)
    for start in (2, 7) if workers else range(9):
        assert seen(SOURCES[kind](), start, 9, workers=workers) == whole[start:]


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 3), (2, 3)])
def test_processes_and_micro_batches_see_what_one_sees(kind, processes, accumulate):
    whole = seen(SOURCES[kind](), 3, 6)
    share = {"processes": processes, "accumulate": accumulate}
    parts = [iter(seen(SOURCES[kind](), 3, 6, rank=rank, **share)) for rank in range(processes)]
    for examples, labels in whole:
        step = [next(parts[rank]) for _ in range(accumulate) for rank in range(processes)]
        assert [v for x, _ in step for v in x] == examples
        assert [v for _, y in step for v in y] == labels
    assert all(next(part, None) is None for part in parts)


def test_loader_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    seen(Counting(7), 0, 3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_processes_and_micro_batches_share_a_step_exactly(processes, accumulate):
    parts = [
        list(StepBatches(12, 4, 5, rank=rank, processes=processes, accumulate=accumulate)) for rank in range(processes)
    ]
    assert all(len(own) == accumulate for own in parts)
    assert sorted(k for own in parts for batch in own for k in batch) == list(range(48, 60))


def test_uneven_batches_are_refused():
    with pytest.raises(ConfigError, match=r"multiple of processes \* accumulate = 2 \* 3, got 10"):
        slices_of_batch(10, rank=0, processes=2, accumulate=3)


def test_derived_seeds_do_not_collide_and_do_not_change():
    seeds = {derive_seed(a, word, b) for a in range(10) for word in ("noise", "order") for b in range(50)}
    assert len(seeds) == 1000
    assert derive_seed(1, "2") != derive_seed("1", 2)
    assert derive_seed(0, "noise", 7) == 8_966_346_200_030_282_841  # on every machine


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("setting", ["meta device", "float64", "meta default"])
def test_the_order_does_not_depend_on_global_defaults(kind, setting):
    plain = seen(SOURCES[kind](), 0, 3)
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    try:
        if setting == "float64":
            torch.set_default_dtype(torch.float64)
        elif setting == "meta default":
            torch.set_default_device("meta")
        with torch.device("meta") if setting == "meta device" else contextlib.nullcontext():
            assert seen(SOURCES[kind](), 0, 3) == plain
            split = hold_out(Counting(9), 0.4, seed=3)
            assert seen(split[0], 0, 1)
            assert torch.empty(0).device.type == ("cpu" if setting == "float64" else "meta")
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)


def test_a_stream_shows_every_row_once_an_epoch():
    lanes = Lanes(CountingStream([3] * 8, lanes=4, buffer=4), seed=0, batch_size=8)
    steps = lanes.steps(0, [slice(0, 8)])
    epochs = [sorted(itertools.chain(*itertools.islice(steps, 3))) for _ in range(4)]
    whole = sorted(itertools.chain(*epochs))
    assert whole == sorted(list(range(24)) * 4)


def test_a_stream_is_shuffled_anew_and_mixes_its_shards():
    lanes = Lanes(CountingStream([6] * 4, lanes=4, buffer=6), seed=0, batch_size=8)
    first, second = (list(itertools.islice(lanes.steps(start, [slice(0, 8)]), 3)) for start in (0, 3))
    assert first != second
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(24))
    assert all(len({row // 6 for row in batch}) == 4 for batch in first)


def test_resuming_a_stream_reads_nothing_of_what_was_passed():
    lengths = [50] * 40
    source = CountingStream(lengths, lanes=4, buffer=4)
    next(Lanes(source, seed=0, batch_size=8).steps(1000, [slice(0, 8)]))
    assert len(source.read) <= 4 * 4  # one buffer a lane
    half = CountingStream(lengths, lanes=4, buffer=4)
    next(Lanes(half, seed=0, batch_size=8).steps(1000, [slice(0, 4)]))
    assert len(half.read) <= 2 * 4  # of the lanes that this process reads


def test_a_stream_of_nothing_is_an_error_and_not_a_loop():
    with pytest.raises(DataError, match="empty"):
        seen(CountingStream([0, 0, 0]), 0, 1)


@pytest.mark.parametrize("batch_size", [1, 5, 7, 64])
@pytest.mark.parametrize("shards", [1, 3])
def test_any_batch_size_and_number_of_shards_will_do(batch_size, shards):
    lanes = Lanes(CountingStream([4] * shards, lanes=8, buffer=100), seed=0, batch_size=batch_size)
    assert batch_size % lanes.count == 0
    steps = lanes.steps(0, [slice(0, batch_size)])
    assert all(len(batch) == batch_size for batch in itertools.islice(steps, 30))


def test_what_cannot_be_split_or_read_is_refused():
    with pytest.raises(ConfigError, match=r"holdout.*streamed"):
        hold_out(CountingStream([3]), 0.5, seed=0)
    assert hold_out(CountingStream([3]), 0, seed=0)[1] is None
    for fraction in (1.0, -0.1, 0.001, float("nan")):
        with pytest.raises(ConfigError, match="holdout"):
            hold_out(Counting(10), fraction, seed=0)
    with pytest.raises(ConfigError, match="expected an ExampleSource or a StreamedSource, got list"):
        Batches([], seed=0, batch_size=1, start=0, stop=1)
    with pytest.raises(DataError, match="none"):
        Batches(Counting(0), seed=0, batch_size=1, start=0, stop=1)
    with pytest.raises(ConfigError, match="mirror"):
        open_source("digits", mirror=True)


class Damaged(CountingStream):
    skip_unreadable = True

    def decode(self, row, generator=None):
        if row % 5 == 2:
            raise DataError(f"row {row}: expected a picture")
        return torch.full((1, 1, 1), float(row)), 0


def test_rows_of_a_stream_that_cannot_be_read_are_left_out_and_named():
    def make():
        return Damaged([9, 7, 8], lanes=2, buffer=4)

    with pytest.warns(UnreadableRowWarning, match="row 2: expected a picture"):
        whole = seen(make(), 0, 6)
    assert all(row % 5 != 2 for x, _ in whole for row in x)
    with pytest.warns(UnreadableRowWarning):
        assert seen(make(), 3, 6) == whole[3:]
    strict = make()
    strict.skip_unreadable = False
    with pytest.raises(DataError, match="expected a picture"):
        seen(strict, 0, 6)
    with pytest.warns(UnreadableRowWarning), pytest.raises(DataError, match="all 4 of a buffer"):
        seen(AllDamaged([9]), 0, 1)


class AllDamaged(Damaged):
    def decode(self, row, generator=None):
        raise DataError("expected a picture")


class Uneven(Counting):
    def example(self, index, generator=None):
        return torch.zeros(1, 1, 1 + index % 2), 0


def test_examples_of_different_shapes_are_named():
    with pytest.raises(DataError, match="one shape"):
        seen(Uneven(12), 0, 1)


def test_workers_leave_signals_to_the_parent():
    import signal

    class Handlers(Counting):
        def example(self, index, generator=None):
            ignored = [signal.getsignal(s) == signal.SIG_IGN for s in (signal.SIGINT, signal.SIGTERM)]
            return torch.full((1, 1, 1), float(all(ignored))), 0

    assert all(v == 1 for x, _ in seen(Handlers(12), 0, 1, workers=1) for v in x)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_reads_as_the_loaders_own(workers):
    class Damaged(Counting):
        def example(self, index, generator=None):
            raise DataError("a.png: expected a readable image, got DataError: none")

    with pytest.raises(DataError) as raised:
        seen(Damaged(12), 0, 1, workers=workers)
    assert str(raised.value) == "a.png: expected a readable image, got DataError: none"


def test_reading_ahead_keeps_order_stops_when_unwanted_and_hands_errors_on():
    import threading

    made = []

    def items():
        for number in itertools.count():
            made.append(number)
            if number == 20:
                raise DataError("the network is gone")
            yield number

    ahead = read_ahead(items(), 3)
    assert made == []
    assert list(itertools.islice(ahead, 5)) == [0, 1, 2, 3, 4]
    assert len(made) <= 5 + 3 + 1
    ahead.close()
    for thread in [thread for thread in threading.enumerate() if thread.name == "read ahead"]:
        thread.join(timeout=5)
        assert not thread.is_alive()
    again = read_ahead(items(), 3)
    assert list(itertools.islice(again, 20)) == list(range(20))
    with pytest.raises(DataError, match="the network is gone"):
        next(again)
    assert list(read_ahead(iter("abc"), 1)) == ["a", "b", "c"]


@pytest.mark.parametrize("draws", [True, False])
def test_a_generator_is_made_for_sources_that_draw(draws):
    handed = []

    class Watched(Counting):
        def example(self, index, generator=None):
            handed.append(generator is not None)
            return super().example(index)

    source = Watched(6)
    source.draws = draws
    rest, _ = hold_out(source, 0.5, seed=0)
    whole = [batch[0] for batch in Batches(rest, seed=0, batch_size=3, start=0, stop=2)]
    assert len(whole) == 2
    assert handed == [draws] * 6
