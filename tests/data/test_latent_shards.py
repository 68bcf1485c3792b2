"""Latent shards: resumable, checked by checksum, read at random."""

import json
import os
import pickle

import pytest
import torch

from wavemamba.data import LatentShards, LatentShardWriter, open_source
from wavemamba.errors import ConfigError, DataError
from wavemamba.seeds import generator_for

DESCRIPTION = {"shape": [2, 3, 3], "mirrored": True, "autoencoder": "test"}


def tensors(indices):
    values = torch.stack([torch.full((2, 3, 3), float(i)) for i in indices])
    return {
        "mean": values,
        "std": torch.full_like(values, 0.5),
        "mean_mirrored": -values - 1000,
        "std_mirrored": torch.zeros_like(values),
        "label": torch.tensor([i % 2 for i in indices]),
    }


def write(folder, total=10, shard_size=4, **changes):
    writer = LatentShardWriter(folder, {**DESCRIPTION, **changes}, total=total, shard_size=shard_size)
    done = []
    for number, indices in writer.missing():
        writer.write(number, tensors(indices))
        done.append(number)
    writer.finish(("even", "odd"))
    return done


def test_written_latents_are_read_back(tmp_path):
    assert write(tmp_path) == [0, 1, 2]
    shards = open_source(tmp_path, verify="all")
    assert (len(shards), shards.shape, shards.classes) == (10, (2, 3, 3), ("even", "odd"))
    for i in (9, 0, 4, 3):
        latent, label = shards.example(i)
        assert torch.equal(latent, torch.full((2, 3, 3), float(i)))
        assert label == i % 2


def test_examples_are_draws_from_the_posterior(tmp_path):
    write(tmp_path)
    shards = LatentShards(tmp_path)
    drawn = torch.stack([shards.example(7, generator_for(k))[0] for k in range(400)])
    assert abs(drawn.mean() - 7) < 0.05
    assert abs(drawn.std() - 0.5) < 0.03
    assert torch.equal(drawn[5], shards.example(7, generator_for(5))[0])


def test_mirrored_latents_come_half_of_the_time(tmp_path):
    write(tmp_path)
    drawn = [
        shards.example(7, generator_for(k))[0].mean() < 0
        for shards in [LatentShards(tmp_path, mirror=True)]
        for k in range(60)
    ]
    assert 15 < sum(drawn) < 45
    write(tmp_path / "plain", mirrored=False)
    with pytest.raises(DataError, match="--mirror"):
        LatentShards(tmp_path / "plain", mirror=True)


def test_an_interrupted_run_goes_on_at_the_first_missing_shard(tmp_path):
    writer = LatentShardWriter(tmp_path, DESCRIPTION, total=10, shard_size=4)
    number, indices = next(writer.missing())
    writer.write(number, tensors(indices))
    with pytest.raises(DataError, match="finished latent shards"):
        LatentShards(tmp_path)
    with pytest.raises(DataError, match=r"latents-00001\.json.*missing"):
        writer.finish(("even", "odd"))
    assert write(tmp_path) == [1, 2]
    assert write(tmp_path) == []


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_damaged_shard_is_found_and_encoded_again(tmp_path, damage):
    write(tmp_path)
    path = tmp_path / "latents-00001.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[-1] ^= 1
        path.write_bytes(data[:-5] if damage == "truncated" else data)
    with pytest.raises(DataError, match=r"latents-00001\.safetensors.*encode the images again"):
        open_source(tmp_path, verify="all")
    assert write(tmp_path) == [1]
    open_source(tmp_path, verify="all")


@pytest.mark.parametrize(("before", "after"), [(b'"mean"', b'"meam"'), (b'{"', b'["')], ids=["name", "header"])
def test_a_shard_of_the_right_size_that_cannot_be_read_is_named(tmp_path, before, after):
    write(tmp_path)
    path = tmp_path / "latents-00001.safetensors"
    path.write_bytes(path.read_bytes().replace(before, after, 1))
    with pytest.raises(DataError, match=r"latents-00001\.safetensors.*encode it again"):
        LatentShards(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("index.json", "{"), ("index.json", "[]"), ("index.json", "{}"), ("index.json", None), ("begun.json", "{")],
)
def test_a_damaged_description_is_a_named_error(tmp_path, name, content):
    write(tmp_path)
    path = tmp_path / name
    path.write_text(path.read_text().replace('"total": 10', '"total": 99') if content is None else content)
    with pytest.raises(DataError, match=name):
        write(tmp_path) if name == "begun.json" else LatentShards(tmp_path)


def test_another_encoding_in_the_same_folder_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match=r"autoencoder was 'test', is 'other'"):
        write(tmp_path, autoencoder="other")
    assert json.loads((tmp_path / "index.json").read_text())["autoencoder"] == "test"


def test_a_full_disk_leaves_whole_shards_only(tmp_path):
    import resource

    writer = LatentShardWriter(tmp_path, DESCRIPTION, total=10, shard_size=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            writer.write(0, tensors(range(4)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["begun.json"]
    assert write(tmp_path) == [0, 1, 2]


def test_shards_can_be_sent_to_worker_processes(tmp_path):
    write(tmp_path)
    shards = LatentShards(tmp_path)
    shards.example(0)
    assert torch.equal(pickle.loads(pickle.dumps(shards)).example(9)[0], shards.example(9)[0])


def rewrite(folder, number, change):
    """Write a shard anew with tensors that `change` made of its own, and an index that fits the file."""
    import hashlib

    from safetensors.torch import load, save

    path = folder / f"latents-{number:05d}.safetensors"
    kept = load(path.read_bytes())
    change(kept)
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in kept.items()}))
    index = json.loads((folder / "index.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    index["shards"][number] |= {"bytes": path.stat().st_size, "sha256": digest}
    (folder / "index.json").write_text(json.dumps(index))


def fewer_rows(kept):
    kept.update({name: tensor[:-1] for name, tensor in kept.items()})


CHANGES = {
    "the null class as a label": (lambda kept: kept["label"].fill_(2), r"labels in 0 \.\.\. 1, got 2 in row 0"),
    "a negative label": (lambda kept: kept["label"].__setitem__(3, -1), r"got -1 in row 3"),
    "fewer rows than told": (fewer_rows, "of 4 rows"),
    "labels that are no integers": (lambda kept: kept.update(label=kept["label"].float()), "label"),
    "no standard deviations": (lambda kept: kept.pop("std"), "std"),
    "another shape": (lambda kept: kept.update(mean=kept["mean"][:, :1]), "mean"),
    "numbers of an unknown kind": (lambda kept: kept.update(mean=kept["mean"].to(torch.uint8)), "U8"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_fits_its_checksum_but_not_its_index_is_named_at_the_start(tmp_path, change):
    write(tmp_path)
    make, message = CHANGES[change]
    rewrite(tmp_path, 1, make)
    with pytest.raises(DataError, match=rf"latents-00001\.safetensors.*{message}"):
        LatentShards(tmp_path)


@pytest.mark.parametrize("name", ["mean", "std", "mean_mirrored"])
def test_latents_that_are_not_finite_are_the_datas_fault(tmp_path, name):
    write(tmp_path)
    rewrite(tmp_path, 1, lambda kept: kept[name][2].fill_(float("nan")))
    with pytest.raises(DataError, match=rf"NaN or infinity in '{name}', row 2; the data are at fault"):
        open_source(tmp_path, verify="all")
    shards = LatentShards(tmp_path, mirror=True)
    with pytest.raises(DataError, match="the data are at fault"):
        [shards.example(6, generator_for(k)) for k in range(20)]


def test_latents_that_are_not_finite_are_not_written(tmp_path):
    writer = LatentShardWriter(tmp_path, DESCRIPTION, total=10, shard_size=4)
    bad = tensors(range(4, 8))
    bad["mean"][1, 0, 0, 0] = torch.inf
    with pytest.raises(DataError, match="'mean' of image 5"):
        writer.write(1, bad)
    assert os.listdir(tmp_path) == ["begun.json"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("shard_size", "0"), ("shard_size", "Infinity"), ("total", "NaN"), ("total", "-3"), ("total", "true"),
     ("total", "1e400"), ("shape", "[2, 3]"), ("shape", "[2, 3, Infinity]"), ("classes", "[]"), ("classes", "[1, 2]"),
     ("shards", "{}"), ("shards", "[[], [], []]"), ("total", "[" * 100_000)],
)  # fmt: skip
def test_an_index_that_cannot_be_is_a_named_error(tmp_path, key, value):
    write(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    text = json.dumps({**index, key: "PLACE"}).replace('"PLACE"', value)
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"index\.json"):
        LatentShards(tmp_path)


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "", "..", "sub/x"])
def test_an_index_reads_nothing_outside_its_folder(tmp_path, file):
    write(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0]["file"] = file
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="outside the folder"):
        LatentShards(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_shard_that_is_cut_while_in_use_does_not_end_the_process(tmp_path, damage):
    write(tmp_path)
    shards = LatentShards(tmp_path)
    shards.example(5)
    path = tmp_path / "latents-00001.safetensors"
    os.truncate(path, 300) if damage == "cut" else path.unlink()
    with pytest.raises(DataError, match=r"latents-00001\.safetensors.*(cut since|readable)"):
        shards.example(5)
    assert shards.example(0)[1] == 0


@pytest.mark.parametrize(("total", "shard_size"), [(0, 4), (4, 0), (-1, 4), (2.5, 4), ("8", 4), (4, None)])
def test_sizes_that_cannot_be_are_refused(tmp_path, total, shard_size):
    with pytest.raises(ConfigError, match="a whole number, at least 1"):
        LatentShardWriter(tmp_path / "new", DESCRIPTION, total=total, shard_size=shard_size)
    with pytest.raises(ConfigError, match="plain JSON"):
        LatentShardWriter(tmp_path / "new", {"factor": float("nan")}, total=4, shard_size=4)
    assert not (tmp_path / "new").exists()


def test_the_fingerprint_is_that_of_the_latents(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    first = LatentShards(tmp_path / "a").fingerprint()
    assert LatentShards(tmp_path / "b").fingerprint() == first
    rewrite(tmp_path / "b", 1, lambda kept: kept["mean"].add_(1e-3))
    assert LatentShards(tmp_path / "b").fingerprint() != first
    assert "10 examples (latents) of 2 classes (even, odd)" in LatentShards(tmp_path / "a").summary()
