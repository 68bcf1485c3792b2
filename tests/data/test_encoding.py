"""Pictures encoded into latent shards, and the command that does it."""

import os

import pytest
import torch
from data.made import CountingStream, png, write_images, write_shards

from wavemamba.commands import encode as command
from wavemamba.data import LatentShards, encode_source, open_source
from wavemamba.errors import ConfigError, DataError

ABOUT = {"shape": [3, 4, 4], "autoencoder": "halves"}


def halves(pixels):
    """An encoder of a picture's means over 2 x 2 pixels."""
    mean = torch.nn.functional.avg_pool2d(pixels, 2)
    return mean, torch.full_like(mean, 0.1)


def encode(source, out, **options):
    return encode_source(source, out, halves, ABOUT, **{"shard_size": 4, "batch_size": 3, **options})


@pytest.mark.parametrize("workers", [0, 1])
def test_latents_are_those_of_the_pictures_in_their_order(tmp_path, workers):
    source = open_source(write_images(tmp_path / "images", 5), size=8)
    before = torch.get_rng_state()
    done = []
    assert encode(source, tmp_path / "out", mirror=True, workers=workers, progress=done.append) == 3
    assert sum(done) == 10
    assert torch.equal(before, torch.get_rng_state())
    shards = LatentShards(tmp_path / "out", mirror=True)
    assert (shards.classes, shards.labels.tolist()) == (("cat", "dog"), [0] * 5 + [1] * 5)
    for index in (0, 7, 9):
        pixels = source.example(index)[0][None]
        assert torch.equal(shards.example(index)[0], halves(pixels)[0][0])
        assert torch.equal(shards._row(index, "mean_mirrored"), halves(pixels.flip(-1))[0][0])


def test_it_goes_on_where_it_stopped_and_refuses_other_pictures(tmp_path):
    folder = write_images(tmp_path / "images", 5)
    source = open_source(folder, size=8)
    assert encode(source, tmp_path / "out") == 3
    (tmp_path / "out" / "latents-00001.safetensors").unlink()
    assert encode(source, tmp_path / "out") == 1
    (folder / "cat" / "0.png").write_bytes(png(0))
    with pytest.raises(DataError, match="images was"):
        encode(open_source(folder, size=8), tmp_path / "out")


def test_tar_shards_are_encoded_and_streams_refused(tmp_path):
    source = open_source(write_shards(tmp_path / "tars", [3, 2]), size=8)
    assert encode(source, tmp_path / "out", dtype=torch.float16) == 2
    assert LatentShards(tmp_path / "out").labels.tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(ConfigError, match="got a stream"):
        encode(CountingStream([3]), tmp_path / "other")


def test_an_encoder_that_overflows_is_named_and_nothing_is_kept(tmp_path):
    source = open_source(write_images(tmp_path / "images", 2), size=8)
    with pytest.raises(DataError, match="encode in float32"):
        encode_source(source, tmp_path / "out", lambda x: (halves(x)[0] * torch.inf, halves(x)[1]), ABOUT)
    assert not list((tmp_path / "out").glob("latents-*"))


class Halves:
    """In the place of `Autoencoder`."""

    class model:
        class config:
            scaling_factor = 1.0

    posterior = staticmethod(halves)

    @classmethod
    def from_pretrained(cls, name, device):
        return cls()

    def latent_shape(self, height, width):
        return 3, height // 2, width // 2


def test_the_command_reads_latin_1_names_and_says_what_it_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "Autoencoder", Halves)
    name = os.fsencode(tmp_path / "images") + b"/caf\xe9"
    os.makedirs(name)
    for file, data in ((b"/\xe9.png", png(3)), (b"/b.png", b"damaged"), (b"/c.png", png(5))):
        with open(name + file, "wb") as opened:
            opened.write(data)
    options = [f"--data={tmp_path / 'images'}", f"--out={tmp_path / 'out'}", "--autoencoder=x", "--image-size=8"]
    assert command.main(options) == 1
    assert "b.png: expected a readable image" in capsys.readouterr().err
    assert command.main([*options, "--skip-unreadable", "--mirror"]) == 0
    said = capsys.readouterr().out
    assert "1 unreadable ones left out" in said
    assert "2 images of 1 classes, 1 shards encoded now" in said
    assert LatentShards(tmp_path / "out", mirror=True).classes == ("caf\\xe9",)
    said.encode("utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--data=/nowhere"], "/nowhere: expected data"), (["--data-options", "label=x"], "unknown option of images")],
)
def test_the_command_names_what_is_wrong(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setattr(command, "Autoencoder", Halves)
    common = [f"--data={write_images(tmp_path / 'images', 1)}", f"--out={tmp_path / 'out'}", "--autoencoder=x"]
    assert command.main([*common, *options]) == 1
    assert message in capsys.readouterr().err
