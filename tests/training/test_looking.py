"""A run looks at its data before the first step, with all its processes, and once in its life."""

import json
from pathlib import Path

import pytest
import torch
from data.made import write_images

from wavemamba.data import Digits, ImageFolder
from wavemamba.errors import ConfigError, DataError
from wavemamba.training import ProgressBar, Trainer, looking


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", 8)


@pytest.fixture
def on_images(config, images):
    return lambda **options: config(**{"data": str(images), "image_size": 8, "steps": 2, **options})


@pytest.fixture
def looks(monkeypatch):
    """How many examples each look was at."""
    counts = []
    look = ImageFolder.look
    monkeypatch.setattr(
        ImageFolder, "look", lambda self, rows, **how: counts.append(len(rows)) or look(self, rows, **how)
    )
    return counts


def damage(folder, *names):
    for name in names:
        path = folder / name
        path.write_bytes(path.read_bytes()[:200])


def test_all_unreadable_pictures_are_listed_before_the_first_step(on_images, images):
    damage(images, "cat/1.png", "dog/7.png")
    with pytest.raises(DataError, match=r"(?s)16 readable examples, 2 of them are not; replace or remove.*skip_unread"
                       r".*cat/1\.png.*dog/7\.png"):  # fmt: skip
        Trainer(on_images()).train()
    assert not Path(on_images().out).exists()
    trainer = Trainer(on_images(skip_unreadable=True))
    assert trainer.train() == "finished"
    assert trainer.examples == 14


def test_without_a_look_a_run_ends_at_the_first_one(on_images, images):
    damage(images, *(f"cat/{i}.png" for i in range(8)))
    with pytest.raises(DataError, match=r"cat/\d\.png: expected a readable image.*--verify-data all"):
        Trainer(on_images(verify_data="none", steps=9)).train()
    with pytest.raises(ConfigError, match="beside skip_unreadable"):
        Trainer(on_images(verify_data="none", skip_unreadable=True)).train()


def test_a_resumed_run_does_not_look_again(on_images, images, looks):
    lines = []
    for steps in (1, 2):
        Trainer(on_images(steps=steps), callbacks=[ProgressBar(lines.append)]).train()
    assert looks == [16]
    assert [line for line in lines if "looked at" in line] == ["looked at: 16 examples, by reading each"] * 2


@pytest.mark.parametrize("skip", [False, True])
def test_changed_data_and_a_closer_look_are_looked_at(on_images, images, looks, skip):
    if skip:
        damage(images, "cat/3.png")
    Trainer(on_images(skip_unreadable=skip, steps=1)).train()
    Trainer(on_images(skip_unreadable=skip, verify_data="all")).train()
    assert looks == [16] * (1 if skip else 2)  # the first one of these was thorough
    damage(images, "dog/5.png")
    again = on_images(skip_unreadable=skip, accept_changes=True, steps=3)
    if skip:
        trainer = Trainer(again)
        trainer.train()
        assert trainer.examples == 14
    else:
        with pytest.raises(DataError, match=r"1 of them are not.*\n.*dog/5\.png"):
            Trainer(again).train()
    assert looks == [16] * (2 if skip else 3)


def test_what_was_left_out_stays_left_out(on_images, images, looks):
    damage(images, "cat/3.png")
    whole, parts = (on_images(out=str(images.parent / name), skip_unreadable=True) for name in ("whole", "parts"))
    Trainer(whole).train()
    Trainer(on_images(out=parts.out, skip_unreadable=True, steps=1)).train()
    trainer = Trainer(parts)
    trainer.train()
    assert looks == [16, 16]
    assert "1 unreadable ones left out" in trainer.source.summary()
    files = [(Path(run.out) / "model" / "model.safetensors").read_bytes() for run in (whole, parts)]
    assert files[0] == files[1]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"faults": 3}', '{"faults": {}, "how": "x"}', "[" * 9999])
def test_a_kept_look_that_is_none_is_looked_again(on_images, looks, content):
    run = on_images()
    Trainer(run).train()
    kept = Path(run.out) / looking.LOOKED_AT_FILE
    assert json.loads(kept.read_text())["examples"] == 16
    kept.write_text(content)
    Trainer(run).train()
    assert looks == [16, 16]


def test_processes_share_a_look(images, monkeypatch):
    damage(images, "cat/3.png", "dog/5.png")
    source = ImageFolder(images)
    shares = []

    def as_process(number):
        monkeypatch.setattr(looking, "rank", lambda: number)
        monkeypatch.setattr(looking, "world_size", lambda: 3)
        monkeypatch.setattr(looking, "gather", lambda own: shares.append(own) or shares)
        return looking.look_together(source, thorough=False)

    found = [as_process(number) for number in range(3)][-1]
    assert [sorted(share.faults) for share in shares] == [[3], [], [13]]
    assert list(found.faults) == [3, 13]


def test_a_source_of_ones_own_is_looked_at_on_request(config):
    class Broken(Digits):
        def example(self, index, generator=None):
            if index == 9:
                raise DataError("row 9")
            return super().example(index, generator)

    lines = []
    Trainer(config(steps=1), callbacks=[ProgressBar(lines.append)]).train()
    assert not [line for line in lines if "looked at" in line]
    with pytest.raises(DataError, match="1 of them are not"):
        Trainer(config("other", verify_data="all"), data=Broken()).train()
    trainer = Trainer(config("third", skip_unreadable=True, steps=1), data=Broken())
    trainer.train()
    assert trainer.examples == 1796
    assert torch.equal(trainer.source.example(9)[0], Digits().example(10)[0])
