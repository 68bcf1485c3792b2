"""The image folder: what it takes, what it says, what it notices."""

import os
import shutil

import numpy as np
import pytest
import torch
from data.made import png, write_images
from PIL import Image

from wavemamba.data import ImageFolder, Part, PictureView, open_source
from wavemamba.errors import ConfigError, DataError

SMALL = PictureView(size=8)


def test_classes_sizes_and_range(tmp_path):
    folder = ImageFolder(write_images(tmp_path, 3), SMALL)
    assert folder.classes == ("cat", "dog")
    assert len(folder) == folder.num_examples == 6
    image, label = folder.example(4)
    assert label == 1
    assert image.shape == folder.shape == (3, 8, 8)
    assert image.dtype == torch.float32
    assert -1 <= image.min() < image.max() <= 1
    assert "6 images of 2 classes (cat 3, dog 3)" in folder.summary()


def test_a_folder_without_subfolders_is_one_class(tmp_path):
    source = write_images(tmp_path / "all", 2, classes=("x",))
    folder = ImageFolder(source / "x", PictureView(size=(8, 6), channels=1))
    assert folder.classes == ("x",)
    assert folder.example(1)[0].shape == (1, 8, 6)


@pytest.fixture
def mixed(tmp_path):
    """Pictures of every kind of place: three beside, one in a sub-folder, hidden ones, others."""
    folder = tmp_path / "mixed"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "deep" / ".hidden").mkdir()
    (folder / "empty").mkdir()
    for name in ("a.png", "b.PNG", "c.png", "deep/er/d.png", ".e.png", "._0.png", ".ipynb_checkpoints/f.png",
                 "deep/.hidden/g.png", "deep/._h.png"):  # fmt: skip
        (folder / name).write_bytes(png(9))
    (folder / "notes.txt").write_text("no picture")
    (folder / "README").write_text("no picture")
    (folder / "deep" / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "deep" / "loop").symlink_to(folder)
    return folder


def test_pictures_beside_and_in_subfolders_are_refused(mixed):
    with pytest.raises(DataError, match=r"3 in itself and 1 in 1 sub-folders.*labels='none'.*labels='folders'"):
        ImageFolder(mixed, SMALL)


def test_what_is_left_out_is_counted_and_said(mixed):
    one = open_source(mixed, labels="none", size=8)
    assert (len(one), one.classes) == (4, ("mixed",))
    said = one.summary()
    for words in (
        "1 sub-folders without images",
        "5 hidden names",
        "1 .txt files",
        "1 no suffix files",
        "1 broken links",
        "1 links to a folder above",
    ):
        assert words in said
    classes = open_source(mixed, labels="folders", size=8)
    assert (len(classes), classes.classes) == (1, ("deep",))
    assert "3 images beside the class folders" in classes.summary()
    assert "1 sub-folders without images" in classes.summary()


def test_linked_folders_are_followed(tmp_path):
    write_images(tmp_path / "store", 2)
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "cats").symlink_to(tmp_path / "store" / "cat")
    assert ImageFolder(tmp_path / "view", SMALL).classes == ("cats",)


def test_names_that_are_no_utf8_are_read_named_and_hashed(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(name)
    with open(name + b"/\xe9.png", "wb") as file:
        file.write(png(3))
    with open(name + b"/\xea.png", "wb") as file:
        file.write(b"damaged")
    folder = ImageFolder(tmp_path, SMALL)
    assert folder.classes == ("caf\\xe9",)
    assert folder.example(0)[0].shape == (3, 8, 8)
    with pytest.raises(DataError) as raised:
        folder.example(1)
    for text in (folder.fingerprint(), folder.summary(), str(raised.value), *folder.classes):
        text.encode("utf-8")


def test_classes_that_look_alike_are_kept_apart(tmp_path):
    for name in (b"caf\xe9", rb"caf\xe9"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
        with open(os.fsencode(tmp_path) + b"/" + name + b"/a.png", "wb") as file:
            file.write(png(3))
    folder = ImageFolder(tmp_path, SMALL)
    assert (len(folder), len(folder.classes), sorted(label for _, label in folder.files)) == (2, 2, [0, 1])


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: (p / "sub").mkdir(parents=True)])
def test_missing_or_empty_folder_is_named(tmp_path, make):
    folder = tmp_path / "pictures"
    make(folder)
    with pytest.raises(DataError, match=r"pictures.*expected"):
        open_source(str(folder))


def changed(folder, how):
    first, second = folder / "cat" / "0.bmp", folder / "dog" / "0.bmp"
    if how == "renamed":
        first.rename(folder / "cat" / "00.bmp")
    elif how == "moved to another class":
        first.rename(folder / "dog" / "9.bmp")
    elif how == "repainted, size and time kept":
        data, about = bytearray(first.read_bytes()), first.stat()
        data[-1] ^= 1
        first.write_bytes(data)
        os.utime(first, ns=(about.st_atime_ns, about.st_mtime_ns))
    elif how == "two classes swapped":
        (folder / "cat").rename(folder / "x")
        (folder / "dog").rename(folder / "cat")
        (folder / "x").rename(folder / "dog")
    elif how == "two files swapped":
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    elif how == "a class renamed":
        (folder / "cat").rename(folder / "bat")
    elif how == "one more":
        shutil.copy(first, folder / "cat" / "9.bmp")
    else:
        first.unlink()


CHANGES = ["renamed", "moved to another class", "repainted, size and time kept", "two classes swapped",
           "two files swapped", "a class renamed", "one more", "one less"]  # fmt: skip


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("how", CHANGES)
def test_the_fingerprint_notices(tmp_path, monkeypatch, how, whole):
    from wavemamba.data import fingerprints

    if not whole:  # as beyond 256 MiB, where pieces are read
        monkeypatch.setattr(fingerprints, "WHOLE", 0)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.bmp")
    before = ImageFolder(tmp_path, SMALL).fingerprint()
    assert ImageFolder(tmp_path, SMALL).fingerprint() == before
    changed(tmp_path, how)
    assert ImageFolder(tmp_path, SMALL).fingerprint() != before


def test_a_copy_has_the_same_fingerprint(tmp_path):
    write_images(tmp_path / "here", 2)
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    first, second = (ImageFolder(tmp_path / name, SMALL).fingerprint() for name in ("here", "there"))
    assert first == second


def test_all_unreadable_files_are_listed_before_the_first_step(tmp_path):
    write_images(tmp_path, 4)
    for name in ("cat/1.png", "dog/3.png"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:200])
    open_source(tmp_path, size=8)
    with pytest.raises(DataError, match=r"(?s)2 of them are not.*skip_unreadable.*cat/1\.png.*dog/3\.png"):
        open_source(tmp_path, size=8, verify="all")
    source = open_source(tmp_path, size=8, skip_unreadable=True)
    assert isinstance(source, Part)
    assert len(source) == 6
    assert [source.example(i)[1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert "2 unreadable ones left out" in source.summary()
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="all 8 cannot be read"):
        open_source(tmp_path, size=8, skip_unreadable=True)


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_unreadable_image_is_named(tmp_path, content):
    write_images(tmp_path, 2)
    path = tmp_path / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    folder = ImageFolder(tmp_path, SMALL)
    folder.example(0)
    with pytest.raises(DataError, match=r"dog/0\.png.*skip_unreadable.*verify"):
        folder.example(2)


def test_wrong_labels_option_is_named(tmp_path):
    with pytest.raises(ConfigError, match="labels"):
        ImageFolder(write_images(tmp_path, 1), SMALL, labels="folder s")
