"""Latent shards: resumable, checked by checksum, read at random."""

import json
import os
import pickle

import pytest
import torch

from wavemamba.data import LatentShards, LatentShardWriter
from wavemamba.errors import DataError
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
    shards = LatentShards(tmp_path, verify=True)
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
        LatentShards(tmp_path, verify=True)
    assert write(tmp_path) == [1]
    LatentShards(tmp_path, verify=True)


@pytest.mark.parametrize(("before", "after"), [(b'"mean"', b'"meam"'), (b'{"', b'["')], ids=["name", "header"])
def test_a_shard_of_the_right_size_that_cannot_be_read_is_named(tmp_path, before, after):
    write(tmp_path)
    path = tmp_path / "latents-00001.safetensors"
    path.write_bytes(path.read_bytes().replace(before, after, 1))
    with pytest.raises(DataError, match=r"latents-00001\.safetensors.*encode it again"):
        LatentShards(tmp_path).example(5)


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
