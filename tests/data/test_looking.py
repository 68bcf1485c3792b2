"""The look at every file before the first step: what it finds, what it costs, what it says."""

import io

import numpy as np
import pytest
import torch
from data.made import Counting, png, write_images, write_shards
from data.test_latent_shards import rewrite
from data.test_latent_shards import write as write_latents
from PIL import Image

from wavemamba.data import Findings, ImageFolder, Part, PictureView, TarShards, hold_out, open_source, verified
from wavemamba.data.picture_source import seems_whole
from wavemamba.errors import DataError

SMALL = PictureView(size=8)
FORMATS = {
    "JPEG": ({}, "jpg"),
    "progressive JPEG": ({"progressive": True}, "jpg"),
    "PNG": ({}, "png"),
    "GIF": ({}, "gif"),
    "BMP": ({}, "bmp"),
    "WEBP": ({}, "webp"),
    "TIFF": ({}, "tif"),
    "packed TIFF": ({"compression": "tiff_lzw"}, "tif"),
    "PPM": ({}, "ppm"),
}


def encoded(form, size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form.split()[-1], **FORMATS[form][0])
    return file.getvalue()


def at_a_glance(folder, view=SMALL):
    """The source as though it were too large to be read."""
    source = ImageFolder(folder, view)
    source.read_up_to = 0
    return source


def look(source):
    return source.look(range(len(source)))


@pytest.fixture
def decoded(monkeypatch):
    """The names of the pictures that were read."""
    names = []
    read = PictureView.read
    monkeypatch.setattr(PictureView, "read", lambda self, *args: names.append(args[1]) or read(self, *args))
    return names


@pytest.mark.parametrize("form", FORMATS)
def test_a_quick_look_finds_every_cut_file_and_no_whole_one(tmp_path, form, decoded):
    data, suffix = encoded(form), FORMATS[form][1]
    cuts = [0, 1, 10, len(data) // 3, len(data) // 2, len(data) - 40]
    for i, end in enumerate([*cuts, len(data), len(data)]):
        (tmp_path / f"{i}.{suffix}").write_bytes(data[:end])
    source = at_a_glance(tmp_path)
    found = look(source)
    assert list(found.faults) == list(range(len(cuts)))
    assert all(f"{i}.{suffix}: expected a readable image" in why for i, why in found.faults.items())
    assert "header and end of each file" in found.how
    wholly = source.look(range(len(source)), thorough=True)
    assert (wholly.faults, wholly.how) == (found.faults, "by reading each")
    del decoded[:]
    look(source)
    assert len(decoded) == (len(source) if form == "PPM" else len(cuts))  # PPM has no end that can be known


@pytest.mark.parametrize("more", [b"\0" * 100, b"a note of the camera", b"\xff\xd9"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP", "GIF"])
def test_what_ends_otherwise_but_can_be_read_is_no_fault(tmp_path, form, more):
    (tmp_path / f"a.{FORMATS[form][1]}").write_bytes(encoded(form) + more)
    assert look(at_a_glance(tmp_path)).faults == {}


def test_a_name_of_another_format_and_modes_of_every_kind_are_no_faults(tmp_path):
    (tmp_path / "really.png").write_bytes(encoded("JPEG"))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"):
        Image.new(mode, (9, 7)).save(tmp_path / f"{mode}.tif".replace(";", ""))
    Image.new("RGB", (9, 7)).save(tmp_path / "two.gif", save_all=True, append_images=[Image.new("RGB", (9, 7), "red")])
    source = at_a_glance(tmp_path)
    assert len(source) == 11
    assert look(source).faults == {}


def test_nothing_of_a_whole_file_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"):
        assert seems_whole(io.BytesIO(encoded(form)))


def test_few_pictures_are_read_and_many_looked_at(tmp_path, decoded):
    source = ImageFolder(write_images(tmp_path, 3), SMALL)
    assert look(source).how == "by reading each"
    assert len(decoded) == len(source) == 6
    source.read_up_to = 5
    assert "header and end" in look(source).how
    assert len(decoded) == 6
    assert source.look([4, 2], thorough=True).how == "by reading each"
    assert len(decoded) == 8


def test_a_verified_source_is_as_it_was(tmp_path):
    source = ImageFolder(write_images(tmp_path, 2), SMALL)
    assert verified(source) is verified(source, verify="all") is verified(source, verify="none") is source


def test_a_part_looks_at_its_own_examples(tmp_path):
    folder = write_images(tmp_path, 4)
    (folder / "cat" / "2.png").write_bytes(b"")
    (folder / "dog" / "0.png").write_bytes(b"")
    part = Part(ImageFolder(folder, SMALL), torch.tensor([7, 4, 1, 2]))
    assert list(look(part).faults) == [1, 3]
    assert list(part.look([0, 3]).faults) == [3]
    rest, held = hold_out(verified(ImageFolder(folder, SMALL), skip_unreadable=True), 0.5, seed=0)
    assert (look(rest).faults, look(held).faults) == ({}, {})


@pytest.mark.parametrize("read_up_to", [0, 20_000])
def test_pictures_of_tar_shards_are_looked_at_in_place(tmp_path, read_up_to, decoded):
    write_shards(tmp_path, [3, 3])
    path = tmp_path / "shard-01.tar"
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT")
    data[start : data.index(b"IEND") + 8] = bytes(data.index(b"IEND") + 8 - start)
    path.write_bytes(data)
    source = TarShards(sorted(tmp_path.glob("*.tar")), SMALL)
    source.read_up_to = read_up_to
    assert list(look(source).faults) == [3]
    assert len(decoded) == (6 if read_up_to else 1)


@pytest.mark.parametrize("read_up_to", [0, 20_000])
def test_rows_of_datasets_are_looked_at(read_up_to, decoded):
    datasets = pytest.importorskip("datasets")
    from wavemamba.data import HuggingFaceDataset

    cells = [{"bytes": png(n)[: 45 if n == 2 else None], "path": None} for n in range(4)]
    features = datasets.Features({"image": datasets.Image()})
    source = HuggingFaceDataset(datasets.Dataset.from_dict({"image": cells}, features=features), SMALL, label=None)
    source.read_up_to = read_up_to
    assert list(look(source).faults) == [2]
    assert len(decoded) == (4 if read_up_to else 1)
    numbers = datasets.Dataset.from_dict({"image": [[[0, 255]], [[0, 256]], [[1, 2]]]})
    source = HuggingFaceDataset(numbers, SMALL, label=None)
    source.read_up_to = read_up_to
    assert list(look(source).faults) == [1]


def test_a_source_of_ones_own_is_read_where_it_is_asked_for():
    class Broken(Counting):
        def example(self, index, generator=None):
            if index % 5 == 3:
                raise DataError(f"row {index} is broken")
            return super().example(index, generator)

    source = Broken(12)
    assert verified(source) is source
    assert look(source) == Findings()
    with pytest.raises(DataError, match=r"(?s)12 readable examples, 2 of them are not.*row 3 is broken\n  row 8"):
        verified(source, verify="all")
    assert len(verified(source, skip_unreadable=True)) == 10


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_all_damaged_latent_shards_are_listed_at_once(tmp_path, damage):
    write_latents(tmp_path)
    for number in (0, 2):
        path = tmp_path / f"latents-{number:05d}.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data[: -5 if damage == "cut" else None])
    with pytest.raises(DataError, match=r"(?s)latents-00000\.safetensors: expected.*latents-00002\.saf"):
        open_source(tmp_path, verify="all")
    if damage == "changed":
        assert len(open_source(tmp_path)) == 10
        rest = open_source(tmp_path, skip_unreadable=True)
        assert [int(rest.example(i)[0].mean()) for i in range(len(rest))] == [4, 5, 6, 7]


def test_latents_that_are_not_finite_can_be_left_out(tmp_path):
    write_latents(tmp_path)
    rewrite(tmp_path, 1, lambda kept: kept["std"][2].fill_(float("nan")))
    rewrite(tmp_path, 2, lambda kept: kept["mean_mirrored"][0].fill_(float("inf")))
    rest = open_source(tmp_path, skip_unreadable=True)
    assert [int(rest.example(i)[0].mean()) for i in range(len(rest))] == [0, 1, 2, 3, 4, 5, 7, 9]
    assert "2 unreadable ones left out" in rest.summary()
    assert "by sizes, headers and labels" in look(open_source(tmp_path)).how


def test_all_damaged_tar_files_are_listed_at_once(tmp_path):
    write_shards(tmp_path, [3, 3, 3])
    for number in (0, 2):
        path = tmp_path / f"shard-{number:02d}.tar"
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"(?s)2 are not:\n  .*shard-00\.tar: expected .*\n  .*shard-02\.tar: exp"):
        open_source(tmp_path, size=8)
