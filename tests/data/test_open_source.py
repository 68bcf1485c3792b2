"""What `open_source` opens, and that it chooses nothing silently."""

import pickle

import pytest
import torch
from data.made import Counting, CountingStream, write_images, write_shards

from wavemamba.data import (
    Digits,
    ImageFolder,
    TarShards,
    encode_source,
    hold_out,
    open_source,
    register_source,
    registry,
    source_kinds,
)
from wavemamba.errors import ConfigError, DataError
from wavemamba.seeds import generator_for


@pytest.fixture
def own_kinds(monkeypatch):
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))


def test_digits_are_the_real_ones():
    digits = open_source("digits")
    assert isinstance(digits, Digits)
    assert len(digits) == 1797
    assert digits.images.shape == (1797, *digits.shape)
    assert digits.images.min() == -1
    assert digits.images.max() == 1
    image, label = digits.example(0)
    assert label == 0
    assert digits.classes[label] == "0"
    assert torch.equal(image, digits.images[0])
    assert digits.fingerprint() == Digits().fingerprint()
    assert "1,797 examples of 10 classes" in digits.summary()


def test_the_kind_is_what_lies_there(tmp_path):
    assert isinstance(open_source(write_images(tmp_path / "images", 1)), ImageFolder)
    assert isinstance(open_source(write_shards(tmp_path / "tars", [2])), TarShards)
    assert isinstance(open_source(f"images:{tmp_path / 'images'}"), ImageFolder)


def test_two_kinds_in_one_folder_are_not_chosen_from(tmp_path):
    write_images(tmp_path / "both", 1)
    write_shards(tmp_path / "both", [2])
    with pytest.raises(DataError, match=r"found a folder of .* and a folder of .*kind='\w+' or kind="):
        open_source(tmp_path / "both")
    assert isinstance(open_source(tmp_path / "both", kind="webdataset"), TarShards)
    (tmp_path / "both" / "index.json").write_text("{}")
    with pytest.raises(DataError, match=r"folder of images.* and .*folder of latent shards"):
        open_source(tmp_path / "both")


def test_a_folder_called_as_a_kind_is_not_chosen_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "digits", 1)
    with pytest.raises(ConfigError, match=r"'\./digits' or 'digits:'"):
        open_source("digits")
    assert isinstance(open_source("./digits"), ImageFolder)
    assert isinstance(open_source("digits:"), Digits)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("digits", {"mirror": True}, "mirror: expected it off"),
        ("digits", {"size": 32}, "expected 8 x 8"),
        ("digits", {"verify": True}, "verify: expected one of 'auto', 'all', 'none', got True"),
        ("digits", {"verfy": "all"}, "did you mean verify"),
        ("{images}", {"verify": "none", "skip_unreadable": True}, "verify: expected 'auto' or 'all' beside skip"),
        ("{images}", {"sise": 8}, "did you mean size"),
        ("{images}", {"split": "train"}, "unknown option of images data 'split'"),
        ("{images}", {"kind": "image"}, "did you mean 'images'"),
        ("{images}", {"channels": 4}, "channels"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(tmp_path, data, options, message):
    write_images(tmp_path, 1)
    with pytest.raises(ConfigError, match=message):
        open_source(data.format(images=tmp_path), **options)


def test_options_that_are_not_given_do_not_count():
    assert len(open_source("digits", size=None, mirror=False, verify=False)) == 1797


@pytest.mark.parametrize("path", ["nowhere", "empty", "text", "file.txt"])
def test_nothing_usable_is_named(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    (tmp_path / "file.txt").write_text("a")
    with pytest.raises(DataError, match=rf"{path}: expected data \('digits'; "):
        open_source(tmp_path / path)


def test_a_kind_of_ones_own_is_opened_by_name_prefix_and_content(tmp_path, own_kinds):
    register_source("counted", lambda what, *, twice=False: Counting(int(what) * (1 + twice)),
                    claims=lambda path: path.suffix == ".count", about="a .count file")  # fmt: skip
    assert len(open_source("counted:7")) == 7
    assert len(open_source("7", kind="counted", twice=True)) == 14
    (tmp_path / "3.count").touch()
    with pytest.raises(ValueError, match="invalid literal"):  # claimed; the error is the user's own
        open_source(tmp_path / "3.count")
    with pytest.raises(DataError, match=r"a \.count file"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="word"):
        register_source("my data", Counting)


@pytest.mark.parametrize("name", [*(kind.name for kind in source_kinds()), "Digits"])
def test_a_name_of_the_library_is_taken(own_kinds, name):
    with pytest.raises(ConfigError, match=f"expected a new name, got '{name}', which is taken"):
        register_source(name, lambda what: Counting(3))


def test_a_kind_of_ones_own_may_be_registered_again(own_kinds):
    register_source("counted", lambda what: Counting(3))
    register_source("counted", lambda what: Counting(4))
    assert len(open_source("counted:")) == 4


def test_streams_are_not_verified(own_kinds):
    register_source("streamed", lambda what, *, view: CountingStream([3]))
    with pytest.raises(ConfigError, match="verify: expected 'auto' or 'none' for streamed data"):
        open_source("streamed:", verify="all")
    assert not open_source("streamed:", verify="auto").skip_unreadable
    assert open_source("streamed:", skip_unreadable=True).skip_unreadable


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", ""])
def test_a_path_that_cannot_be_is_named(name):
    with pytest.raises(DataError, match="expected"):
        open_source(name)


@pytest.mark.parametrize("kind", ["digits", "images", "webdataset", "latents", "huggingface"])
def test_examples_do_not_depend_on_global_defaults(tmp_path, kind):
    source = make(kind, tmp_path)
    seen = [source.example(1, generator_for(k)) for k in range(3)]
    order = source.epoch_order(generator_for(0))
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        source = make(kind, tmp_path)
        for k, (pixels, label) in enumerate(seen):
            again, same = source.example(1, generator_for(k))
            assert (again.dtype, again.device.type, same) == (torch.float32, "cpu", label)
            assert torch.equal(again, pixels)
        assert torch.equal(source.epoch_order(generator_for(0)), order)
        assert hold_out(source, 0.3, seed=0)[1].example(0)[0].device.type == "cpu"
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)


@pytest.mark.parametrize("kind", ["digits", "images", "webdataset", "latents", "huggingface"])
def test_sources_can_be_sent_to_workers_that_are_not_forked(tmp_path, kind):
    source = hold_out(make(kind, tmp_path), 0.4, seed=0)[0]
    sent = pickle.loads(pickle.dumps(source))
    assert torch.equal(sent.example(1, generator_for(3))[0], source.example(1, generator_for(3))[0])
    assert sent.fingerprint() == source.fingerprint()
    assert sent.summary() == source.summary()
    assert str(len(source)) in source.summary()


def make(kind, folder):
    """A source of a kind with all that draws from the generator, made once in a folder."""
    there = folder / kind
    if kind == "digits":
        return open_source("digits")
    if kind == "images":
        return open_source(there if there.exists() else write_images(there, 3), size=8, mirror=True)
    if kind == "webdataset":
        return open_source(there if there.exists() else write_shards(there, [4, 3]), size=8, mirror=True)
    if kind == "latents":
        if not there.exists():
            encode_source(make("images", folder), there, lambda x: (x, x.abs()), {"shape": [3, 8, 8]}, mirror=True)
        return open_source(there, mirror=True)
    if not there.exists():
        datasets = pytest.importorskip("datasets")
        rows = {"image": [[[n] * 8] * 8 for n in range(6)], "label": list("ababab")}
        datasets.Dataset.from_dict(rows).save_to_disk(there)
    return open_source(there, size=8, mirror=True)
