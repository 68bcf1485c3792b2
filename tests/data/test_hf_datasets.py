"""Hugging Face data, local and streamed."""

import pytest
import torch
from data.made import numbers_of, png

from wavemamba.data import Batches, HuggingFaceDataset, HuggingFaceStream, PictureView, hold_out, open_source
from wavemamba.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets")
SMALL = PictureView(size=8, mirror=True)


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def table(numbers, label=lambda number: number % 3, names=("a", "b", "c")):
    rows = {"image": [{"bytes": png(n), "path": None} for n in numbers], "label": [label(n) for n in numbers]}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


@pytest.fixture
def parquet(tmp_path):
    """Five files of 7, 3, 1, 6 and 4 rows."""
    folder, start = tmp_path / "parquet", 0
    folder.mkdir()
    for number, length in enumerate((7, 3, 1, 6, 4)):
        table(range(start, start + length)).to_parquet(folder / f"train-{number}.parquet")
        start += length
    return folder


def streamed(parquet, **options):
    return open_source(f"huggingface:{parquet}", streaming=True, size=8, mirror=True, **options)


def test_saved_data_are_found_and_read(tmp_path):
    table(range(10)).save_to_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved", size=8, channels=1)
    assert isinstance(source, HuggingFaceDataset)
    assert (len(source), source.shape, source.classes) == (10, (1, 8, 8), ("a", "b", "c"))
    image, label = source.example(7)
    assert torch.equal(image, torch.full((1, 8, 8), 7 / 127.5 - 1))
    assert label == 1
    rest, held = hold_out(source, 0.3, seed=0)
    assert (len(rest), len(held)) == (7, 3)
    assert "10 examples of 3 classes (a, b, c)" in source.summary()
    datasets.DatasetDict(train=table(range(4))).save_to_disk(tmp_path / "dict")
    assert len(open_source(tmp_path / "dict", size=8)) == 4
    with pytest.raises(DataError, match=r"dict.*'valid'"):
        open_source(tmp_path / "dict", split="valid")


def test_the_fingerprint_of_local_data_is_that_of_its_content():
    first = HuggingFaceDataset(table(range(10)), SMALL).fingerprint()
    assert HuggingFaceDataset(table(range(10)), SMALL).fingerprint() == first
    for other in (
        table(range(1, 11)),
        table(range(9)),
        table(range(10), lambda n: n % 2),
        table(range(10), names="xyz"),
    ):
        assert HuggingFaceDataset(other, SMALL).fingerprint() != first


@pytest.mark.parametrize("workers", [0, 2])
def test_local_data_resume_in_place(workers):
    source = HuggingFaceDataset(table(range(10)), SMALL)
    common = {"seed": 3, "batch_size": 4, "stop": 6}
    whole = numbers_of(Batches(source, start=0, **common))
    assert numbers_of(Batches(source, start=4, workers=workers, **common)) == whole[4:]


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_data_resume_in_place(parquet, workers):
    source = streamed(parquet, lanes=2, buffer=3)
    assert isinstance(source, HuggingFaceStream)
    assert (source.num_shards, source.classes) == (5, ("a", "b", "c"))
    common = {"seed": 3, "batch_size": 4, "stop": 16}
    whole = numbers_of(Batches(source, start=0, **common))
    assert {n for row in whole for n in row[:4]} == set(range(21))
    assert all(n % 3 == label for row in whole for n, label in zip(row[:4], row[4:], strict=True))
    for start in (11,) if workers else (1, 6, 13):
        again = streamed(parquet, lanes=2, buffer=3)
        assert numbers_of(Batches(again, start=start, workers=workers, **common)) == whole[start:]


def test_lengths_of_shards_are_counted_once_and_kept(parquet, tmp_path, monkeypatch):
    source = streamed(parquet, lanes=1, buffer=2, index=tmp_path / "index")
    common = {"seed": 3, "batch_size": 2, "stop": 30}
    whole = numbers_of(Batches(source, start=0, **common))
    counted = []
    original = HuggingFaceStream.__mro__[1].shard_length
    monkeypatch.setattr(
        HuggingFaceStream.__mro__[1], "shard_length", lambda self, n: (counted.append(n), original(self, n))[1]
    )
    again = streamed(parquet, lanes=1, buffer=2, index=tmp_path / "index")
    assert numbers_of(Batches(again, start=25, **common)) == whole[25:]
    assert counted == []
    cold = streamed(parquet, lanes=1, buffer=2, index=tmp_path / "elsewhere")
    assert numbers_of(Batches(cold, start=25, **common)) == whole[25:]
    assert sorted(counted) == sorted({*counted})
    assert counted


def test_an_index_that_cannot_be_written_is_done_without(parquet, tmp_path):
    (tmp_path / "file").touch()
    source = streamed(parquet, lanes=1, buffer=2, index=tmp_path / "file")
    common = {"seed": 3, "batch_size": 2, "stop": 12}
    whole = numbers_of(Batches(source, start=0, **common))
    assert (
        numbers_of(Batches(streamed(parquet, lanes=1, buffer=2, index=tmp_path / "file"), start=9, **common))
        == whole[9:]
    )


def test_the_fingerprint_of_streamed_data_notices(parquet):
    first = streamed(parquet).fingerprint()
    assert streamed(parquet).fingerprint() == first
    table(range(1, 8)).to_parquet(parquet / "train-0.parquet")
    assert streamed(parquet).fingerprint() != first


def test_a_file_that_is_damaged_is_named(parquet):
    path = parquet / "train-2.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="parquet"):
        numbers_of(Batches(streamed(parquet), seed=0, batch_size=4, start=0, stop=20))


def test_a_picture_that_is_damaged_is_named(parquet):
    rows = table(range(4)).to_dict()
    rows["image"][2] = {"bytes": b"no picture", "path": None}
    data = datasets.Dataset.from_dict(rows, features=table([0]).features)
    with pytest.raises(DataError, match="datasets, row 2: expected a readable image"):
        HuggingFaceDataset(data, SMALL).example(2)
    data.to_parquet(parquet / "train-0.parquet")
    with pytest.raises(DataError, match=r"parquet \(train\), shard 0, row 2: expected a readable image"):
        numbers_of(Batches(streamed(parquet), seed=0, batch_size=4, start=0, stop=20))
    data.save_to_disk(parquet / "saved")
    assert len(open_source(parquet / "saved", size=8, skip_unreadable=True)) == 3


def test_a_picture_that_a_row_names_by_its_address_is_fetched():
    import fsspec

    with fsspec.open("memory://pictures/a.png", "wb") as file:
        file.write(png(9))
    rows = {"image": [{"bytes": None, "path": f"memory://pictures/{name}.png"} for name in "ab"]}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    source = HuggingFaceDataset(data, SMALL, label=None)
    assert torch.equal(source.example(0)[0], torch.full((3, 8, 8), 9 / 127.5 - 1))
    with pytest.raises(DataError, match=r"row 1.*FileNotFoundError"):
        source.example(1)


def test_rows_of_numbers_are_pictures_too():
    data = datasets.Dataset.from_dict({"pixels": [[[0, 255], [255, 0]]] * 3, "digit": ["x", "y", "x"]})
    source = HuggingFaceDataset(data, PictureView(size=2, channels=1), image="pixels", label="digit")
    assert source.classes == ("x", "y")
    assert torch.equal(source.example(1)[0], torch.tensor([[[-1.0, 1], [1, -1]]]))
    for wrong in ([[0.0, 0.5]], [[0, 256]], [[-1, 0]], [[]], 3, "no file"):
        data = datasets.Dataset.from_dict({"pixels": [wrong]})
        with pytest.raises(DataError, match="row 0: expected"):
            HuggingFaceDataset(data, SMALL, image="pixels", label=None).example(0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image": "picture"}, DataError, "a column 'picture', there are image, label"),
        ({"label": "lable"}, DataError, "a column 'lable'"),
        ({"classes": ("a",)}, DataError, "expected a label of 1 classes"),
        ({"split": "valid"}, DataError, "valid"),
        ({"name": "other"}, DataError, "other"),
        ({"verify": "all", "streaming": True}, ConfigError, "verify: expected 'auto' or 'none' for streamed data"),
        ({"lanes": 3}, ConfigError, "streaming=True alone"),
        ({"lanes": 0, "streaming": True}, ConfigError, "lanes, buffer"),
        ({"colums": 3}, ConfigError, "unknown option"),
    ],
)
def test_what_is_wrong_is_named(parquet, options, error, message):
    with pytest.raises(error, match=message):
        open_source(f"huggingface:{parquet}", size=8, **options)


def test_shuffled_streams_are_refused():
    """Their order is no matter of seed and step; after `skip`, `datasets` 5 may wait for its own threads for ever."""
    stream = table(range(8)).to_iterable_dataset(num_shards=4)
    HuggingFaceStream(stream, SMALL)
    for shuffled in (stream.shuffle(seed=0), stream.shuffle(seed=0).select_columns(["image", "label"]).take(5)):
        with pytest.raises(ConfigError, match=r"order of their files, got shuffled ones; leave shuffle\(\) out"):
            HuggingFaceStream(shuffled, SMALL)


@pytest.mark.parametrize("labels", [[0, 2**31, 1], ["a", "", "b"], ["a", " ", "b"], [0, -1, 1], [0, None, 1]])
def test_labels_that_say_no_class_are_refused(labels):
    data = datasets.Dataset.from_dict({"image": [[[0, 1]]] * 3, "label": labels})
    with pytest.raises(DataError, match=r"expected (labels that number|numbers >= 0 or names)"):
        HuggingFaceDataset(data, SMALL)


def test_data_that_are_not_there_are_named():
    with pytest.raises(DataError, match=r"no_such/data_set: expected data that 'datasets' can read"):
        open_source("huggingface:no_such/data_set")
    with pytest.raises(DataError, match="rows, there are none"):
        HuggingFaceDataset(table([]), SMALL)
