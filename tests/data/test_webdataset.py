"""WebDataset tar shards: what they hold, how they resume, and every way to be damaged."""

import shutil

import pytest
import torch
from data.made import numbers_of, png, write_shards, write_tar

from wavemamba.data import Batches, open_source
from wavemamba.errors import DataError


def test_tar_shards_are_pictures_with_labels(tmp_path):
    source = open_source(write_shards(tmp_path, [4, 1, 3]), size=8, channels=1)
    assert (len(source), source.shape, source.classes) == (8, (1, 8, 8), ("0", "1", "2"))
    for index in (7, 0, 4):
        image, label = source.example(index)
        assert torch.equal(image, torch.full((1, 8, 8), index / 127.5 - 1))
        assert label == index % 3
    assert "8 images in 3 tar shards of 3 classes" in source.summary()
    assert "8 .json members" in source.summary()


@pytest.mark.parametrize("workers", [0, 2])
def test_tar_shards_resume_in_place(tmp_path, workers):
    source = open_source(write_shards(tmp_path, [5, 2, 4, 6]), size=8, mirror=True)
    common = {"seed": 3, "batch_size": 6, "stop": 8}
    whole = numbers_of(Batches(source, start=0, **common))
    assert numbers_of(Batches(source, start=5, workers=workers, **common)) == whole[5:]
    first_epoch = [n for row in whole[:3] for n in row[:6]][:17]
    assert len({*first_epoch}) == 17


def test_the_order_of_an_epoch_stays_in_few_shards(tmp_path):
    source = open_source(write_shards(tmp_path, [3] * 20), size=8)
    order = source.epoch_order(torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(60))
    assert len({n // 3 for n in order[:24].tolist()}) == 8
    assert order.tolist() != source.epoch_order(torch.Generator().manual_seed(1)).tolist()


def test_the_index_is_kept_and_made_anew_when_it_no_longer_fits(tmp_path):
    write_shards(tmp_path, [4, 2])
    first = open_source(tmp_path, size=8)
    kept = sorted((tmp_path / ".wavemamba-index").iterdir())
    assert len(kept) == 2
    kept[0].write_text('{"fits": 3}')
    kept[1].write_text("[" * 100_000)
    assert open_source(tmp_path, size=8).fingerprint() == first.fingerprint()
    write_shards(tmp_path, [5, 2])
    again = open_source(tmp_path, size=8)
    assert len(again) == 7
    assert again.fingerprint() != first.fingerprint()


def test_the_fingerprint_of_tar_shards_notices(tmp_path):
    write_shards(tmp_path, [4, 2])
    first = open_source(tmp_path, size=8).fingerprint()
    shutil.copytree(
        tmp_path, tmp_path.parent / "copy", ignore=shutil.ignore_patterns(".*"), copy_function=shutil.copyfile
    )
    assert open_source(tmp_path.parent / "copy", size=8).fingerprint() == first
    shutil.rmtree(tmp_path.parent / "copy")
    data = bytearray((tmp_path / "shard-00.tar").read_bytes())
    data[data.index(b"IDAT") + 5] ^= 1
    (tmp_path / "shard-00.tar").write_bytes(data)
    assert open_source(tmp_path, size=8).fingerprint() != first
    write_shards(tmp_path, [4, 2], label=lambda number: str((number + 1) % 3))
    assert open_source(tmp_path, size=8).fingerprint() != first


def test_names_of_classes(tmp_path):
    write_shards(tmp_path, [4], label=lambda number: ["cat", "dog"][number % 2])
    source = open_source(tmp_path, size=8)
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [0, 1, 0, 1])
    assert open_source(tmp_path, size=8, classes=("dog", "cat", "cow")).labels.tolist() == [1, 0, 1, 0]
    assert open_source(tmp_path, size=8, label="none").classes == ("all",)
    with pytest.raises(DataError, match="every name once"):
        open_source(tmp_path, size=8, classes=("cat", "dog", "cat"))
    with pytest.raises(DataError, match=r"shard-00\.tar: /0000.*'cat'|0000\.png.*'cat'"):
        open_source(tmp_path, size=8, classes=("dog", "cow"))


def test_which_shards(tmp_path):
    write_shards(tmp_path, [2, 3, 4])
    assert len(open_source(f"webdataset:{tmp_path}/shard-{{00..01}}.tar", size=8)) == 5
    assert len(open_source(f"webdataset:{tmp_path}/shard-0[12].tar", size=8)) == 7
    assert len(open_source(tmp_path / "shard-02.tar", size=8)) == 4
    with pytest.raises(DataError, match=r"shard-03\.tar"):
        open_source(f"webdataset:{tmp_path}/shard-{{00..03}}.tar")
    with pytest.raises(DataError, match="found none"):
        open_source(f"webdataset:{tmp_path}/x*.tar")


def members(tmp_path, *names, data=None):
    return write_tar(tmp_path / "a.tar", [(name, data or (b"1" if name.endswith("cls") else png(9))) for name in names])


def test_hidden_members_are_left_out_and_folders_are_kept_apart(tmp_path):
    path = members(tmp_path, "./a/1.png", "./a/._1.png", "b/1.png", ".hidden/2.png", "b/1.txt", f"22.0/{'n' * 300}.png")
    source = open_source(path, size=8)
    assert len(source) == 3
    assert source.example(2)[0].shape == (3, 8, 8)
    assert "2 hidden names" in source.summary()


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (
            ["1.jpg", "1.mask.png"],
            {},
            r"tar: expected one .* second one: 1\.mask\.png; say which suffix .* image=$",
        ),
        (["1.png", "1.cls", "2.png"], {}, r"2\.png: expected a label, 1 of 2 samples"),
        (["1.cls"], {}, "expected pictures.*1 samples without a picture"),
        (["1.png", "1.cls"], {"classes": ("a",)}, "expected a label below 1"),
        (["22.05.png", "22.05.cls"], {}, r"names without dots.*22\.05\.cls"),
        (["22.05.png", "22.06.png"], {}, r"second one: 22\.06\.png"),
        (["1.png"], {"classes": ("a", "b")}, "for 2 classes, there are none"),
    ],
)
def test_samples_that_are_not_clear_are_refused(tmp_path, names, options, message):
    with pytest.raises(DataError, match=message):
        open_source(members(tmp_path, *names), size=8, **options)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"", r"2\.png: expected a number or a name as label, got an empty one"),
        (b" \n", "got an empty one"),
        (b"900000000", r"2\.png: expected labels that number the classes from 0 on, got 900000000; .*classes="),
        (b"9" * 4000, "number the classes from 0 on"),
    ],
)
def test_labels_that_say_no_class_are_refused(tmp_path, label, message):
    path = write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"1"), ("2.png", png(2)), ("2.cls", label)])
    with pytest.raises(DataError, match=message):
        open_source(path, size=8)


def test_what_an_editor_puts_before_a_text_is_no_part_of_a_label(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"\xef\xbb\xbf1\r\n")])
    assert open_source(path, size=8).classes == ("0", "1")


def test_members_need_not_be_neighbours(tmp_path):
    names = ["x.v1/2.PNG", "x.v1/1.png", "y/1.png", "x.v1/1.cls", "y/1.CLS", "x.v1/2.cls"]
    path = write_tar(
        tmp_path / "a.tar", [(name, png(9) if "n" in name.lower() else name[:1].encode()) for name in names]
    )
    source = open_source(path, size=8)
    assert [source.classes[source.example(i)[1]] for i in range(3)] == ["x", "x", "y"]


def test_one_of_several_pictures_is_named(tmp_path):
    path = members(tmp_path, "1.png", "1.mask.png")
    source = open_source(path, size=8, image="mask.png")
    assert len(source) == 1
    assert "1 .png members" in source.summary()


@pytest.mark.parametrize("cut", [-1024, -1023, -1536, 512 * 3, 512 * 3 + 100, 100, 0])
def test_a_tar_that_is_cut_is_named(tmp_path, cut):
    write_shards(tmp_path, [3])
    path = tmp_path / "shard-00.tar"
    path.write_bytes(path.read_bytes().rstrip(b"\0")[: cut or None] if cut == 0 else path.read_bytes()[:cut])
    if cut == 0:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"shard-00\.tar: expected an uncompressed tar file that is whole"):
        open_source(tmp_path, size=8)


def test_a_tar_with_a_damaged_header_is_named(tmp_path):
    write_shards(tmp_path, [3])
    path = tmp_path / "shard-00.tar"
    data = bytearray(path.read_bytes())
    start = data.index(b"0001.png")
    data[start : start + 300] = b"x" * 300
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-00\.tar.*damaged"):
        open_source(tmp_path, size=8)


def test_a_compressed_tar_is_named(tmp_path):
    import gzip

    write_shards(tmp_path, [3])
    path = tmp_path / "shard-00.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"unpack \.tar\.gz"):
        open_source(tmp_path, size=8)


def test_a_tar_that_is_cut_or_taken_away_while_in_use_is_named(tmp_path):
    source = open_source(write_shards(tmp_path, [3]), size=8)
    path = tmp_path / "shard-00.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"shard-00\.tar: 0002\.png: expected .* the tar file was cut"):
        source.example(2)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00\.tar: 0000\.png"):
        source.example(0)


def test_damaged_pictures_in_tars_are_listed_or_left_out(tmp_path):
    write_shards(tmp_path, [3, 3])
    path = tmp_path / "shard-01.tar"
    data = bytearray(path.read_bytes())
    start = data.index(b"\x89PNG")
    data[start : start + 8] = b"x" * 8
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-01\.tar: 0003\.png"):
        open_source(tmp_path, size=8, verify="all")
    source = open_source(tmp_path, size=8, skip_unreadable=True)
    assert len(source) == 5
    order = source.epoch_order(torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(5))
