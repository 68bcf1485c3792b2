"""`python -m wavemamba.sample`, called as a function."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from wavemamba import Sampler, create_model
from wavemamba.commands.sample import main
from wavemamba.diffusion import Objective
from wavemamba.models import TrainedFor
from wavemamba.seeds import derive_seed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("dimsum_tiny", img_size=4, in_chans=1, dim=16, depth=1, num_classes=3)
        torch.nn.init.normal_(model.head.linear.weight, std=0.3)
    model.trained_for = TrainedFor(objective=Objective("gvp").to_dict(), class_names=("cat", "dog", "a/b"))
    model.save_pretrained(path)
    return path


def test_a_grid_files_and_their_record(folder, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    options = ["--classes", "dog", "2", "--per-class=3", "--solver=heun", "--steps=2", f"--npz={tmp_path / 'a.npz'}"]
    assert main([f"--model={folder}", f"--out={out}", *options, f"--png-folder={tmp_path / 'png'}"]) == 0
    assert "6 samples of 2 classes, 4 function evaluations" in capsys.readouterr().out
    record = json.loads(out.with_suffix(".json").read_text())
    assert (record["seed"], record["settings"]["solver"]) == (0, "heun2")
    assert record["class_names"] == ["dog"] * 3 + ["a/b"] * 3
    with np.load(tmp_path / "a.npz") as file:
        assert file["images"].shape == (6, 4, 4, 1)
        assert file["labels"].tolist() == [1, 1, 1, 2, 2, 2]
        with Image.open(tmp_path / "png" / "a_b" / "00003.png") as first:
            assert np.array_equal(np.asarray(first), file["images"][3, ..., 0])
    again = Sampler.from_pretrained(folder)([2], [derive_seed(0, "sample", 3)], solver="heun", steps=2)
    with Image.open(tmp_path / "png" / "a_b" / "00003.png") as first:
        assert np.array_equal(np.asarray(first), np.asarray(again.to_pil()[0]))


def test_noise_on_the_way_and_another_size(folder, tmp_path):
    out = tmp_path / "grid.png"
    options = ["--per-class=1", "--diffusion=sigma", "--steps=3", "--size", "4", "8", "--guidance=1"]
    assert main([f"--model={folder}", f"--out={out}", *options]) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    assert (record["settings"]["kind"], record["settings"]["diffusion"], record["size"]) == ("sde", "sigma", [4, 8])
    assert record["class_names"] == ["cat", "dog", "a/b"]


def test_the_dtype_that_was_taken_is_said(folder, tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert (
        main([f"--model={folder}", f"--out={out}", "--per-class=1", "--solver=euler", "--steps=1", "--dtype=auto"]) == 0
    )
    record = json.loads(out.with_suffix(".json").read_text())
    assert f" in {record['dtype']} ({record['dtype_reason']})" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "11"], "expected names or ids below 3, got '11'"),
        (["--classes", "cta"], "did you mean 'cat'"),
        (["--model=/nowhere"], "nowhere"),
        (["--out=a.jpg"], "expected the name of a .png file, got a.jpg"),
        (["--guidance-interval", "0.9", "0.1"], "expected 0 <= start <= end <= 1"),
        (["--size", "1", "2", "3"], "size"),
        (["--solver=euler", "--diffusion=sigma"], "euler_maruyama"),
    ],
)
def test_what_is_wrong_is_named(folder, tmp_path, capsys, options, message):
    out = tmp_path / "a.png"
    assert main([f"--model={folder}", f"--out={out}", "--steps=2", "--per-class=1", *options]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()
