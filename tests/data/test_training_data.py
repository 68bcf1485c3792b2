"""Datasets and the order in which they are seen."""

import numpy as np
import pytest
import torch
from PIL import Image

from wavemamba.data import (
    Batches,
    Digits,
    ExampleSource,
    ExampleStream,
    ImageFolder,
    PictureView,
    StepBatches,
    hold_out,
    open_source,
    slices_of_batch,
)
from wavemamba.errors import ConfigError, DataError
from wavemamba.seeds import derive_seed, generator_for


def write_images(folder, count, size=(20, 14), classes=("cat", "dog")):
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
                folder / name / f"{i}.png"
            )
    return folder


class Counting(ExampleSource):
    """A source whose examples say which they are and what was drawn for them."""

    classes = ("a", "b")
    shape = (1, 1, 1)

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def example(self, index, generator=None):
        drawn = 0.0 if generator is None else float(torch.rand((), generator=generator))
        return torch.tensor([[[index + drawn]]]), index % 2

    def fingerprint(self):
        return str(self.count)


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


def test_image_folder_classes_sizes_and_range(tmp_path):
    folder = ImageFolder(write_images(tmp_path, 3), PictureView(size=8))
    assert folder.classes == ("cat", "dog")
    assert len(folder) == 6
    image, label = folder.example(4)
    assert label == 1
    assert image.shape == folder.shape == (3, 8, 8)
    assert image.dtype == torch.float32
    assert -1 <= image.min() < image.max() <= 1


def test_image_folder_without_subfolders_is_one_class(tmp_path):
    source = write_images(tmp_path / "all", 2, classes=("x",))
    assert ImageFolder(source / "x", PictureView(size=8, channels=1)).classes == ("x",)
    assert ImageFolder(source / "x", PictureView(size=8, channels=1)).example(1)[0].shape == (1, 8, 8)


def test_image_is_upright_cropped_to_the_centre_and_keeps_its_values(tmp_path):
    array = np.zeros((4, 10, 3), dtype=np.uint8)
    array[:, 3:7] = 255
    Image.fromarray(array).save(tmp_path / "a.png")
    image, _ = ImageFolder(tmp_path, PictureView(size=4)).example(0)
    assert torch.equal(image, torch.ones(3, 4, 4))


def test_mirroring_is_a_draw_from_the_examples_generator(tmp_path):
    folder = ImageFolder(write_images(tmp_path, 1), PictureView(size=8, mirror=True))
    plain = folder.example(0)[0]
    seen = [folder.example(0, generator_for(k))[0] for k in range(40)]
    flipped = [not torch.equal(image, plain) for image in seen]
    assert 8 < sum(flipped) < 32
    assert all(torch.equal(image, plain.flip(-1)) for image, flip in zip(seen, flipped, strict=True) if flip)
    assert torch.equal(seen[3], folder.example(0, generator_for(3))[0])


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: (p / "sub").mkdir(parents=True)])
def test_missing_or_empty_folder_is_named(tmp_path, make):
    folder = tmp_path / "pictures"
    make(folder)
    with pytest.raises(DataError, match=r"pictures.*expected"):
        open_source(str(folder))


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_unreadable_image_is_named(tmp_path, content):
    write_images(tmp_path, 2)
    path = tmp_path / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    folder = ImageFolder(tmp_path, PictureView(size=8))
    folder.example(0)
    with pytest.raises(DataError, match=r"dog/0\.png"):
        folder.example(2)


def test_wrong_options_are_refused(tmp_path):
    write_images(tmp_path, 1)
    with pytest.raises(ConfigError, match="channels"):
        PictureView(size=8, channels=2)
    with pytest.raises(ConfigError, match="mirror"):
        open_source("digits", mirror=True)
    with pytest.raises(ConfigError, match="holdout"):
        hold_out(Digits(), 1.0, seed=0)


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


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_a_loader_gives_what_the_unbroken_one_gives(workers):
    common = {"seed": 5, "batch_size": 4, "stop": 6}
    whole = [x.flatten().tolist() for x, _ in Batches(Counting(7), start=0, **common)]
    rest = [x.flatten().tolist() for x, _ in Batches(Counting(7), start=2, workers=workers, **common)]
    assert rest == whole[2:]


def test_loader_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    list(Batches(Counting(7), seed=5, batch_size=2, start=0, stop=3))
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
