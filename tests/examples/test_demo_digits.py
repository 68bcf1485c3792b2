"""The digits demo: its judges, and all of its files from a run of a few steps."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from wavemamba import DiMSUM
from wavemamba.data import Digits


@pytest.fixture(scope="module")
def judge():
    from demo_digits import Judge

    return Judge()


def test_judge_reads_real_digits_and_refuses_noise(judge):
    assert judge.test_accuracy > 0.98
    digits = Digits()
    assert (judge.read(digits.images) == digits.labels.numpy()).mean() > 0.98
    noise = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (judge.read(noise) == np.arange(500) % 10).mean() < 0.3
    assert judge.distance(noise) > 20 * judge.distance_of_halves()
    assert judge.distance(digits.images) == pytest.approx(0, abs=1e-6)


def test_distance_is_the_one_of_the_paper(judge):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    half = Digits().images[::2]
    features = [judge.components.transform(x) for x in (half.flatten(1).double().numpy(), judge.real)]
    pair = [fid_features_to_statistics(torch.from_numpy(f)) for f in features]
    expected = fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"]
    assert judge.distance(half) == pytest.approx(expected, rel=1e-6)


def test_demo_leaves_its_files_and_says_what_falls_short(tmp_path, monkeypatch, capsys):
    import demo_digits

    smaller = [word.replace("dim=64", "dim=32").replace("depth=4", "depth=2") for word in demo_digits.TRAINING]
    monkeypatch.setattr(demo_digits, "TRAINING", [*smaller, "--batch-size=16", "--sample-steps=2", "--quiet"])
    options = [f"--out={tmp_path / 'run'}", "--steps=20", "--samples=20", "--threads=1"]
    assert demo_digits.main(options) == 0
    run = tmp_path / "run"
    for name in ("samples.png", "training.png", "denoising.png"):
        assert 2_000 < (run / name).stat().st_size < 300_000
        assert min(Image.open(run / name).size) >= 80
    assert DiMSUM.from_pretrained(run / "model").num_classes == 10
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["accuracy"] <= 1
    assert metrics["frechet_distance"] > metrics["frechet_distance_of_two_real_halves"] > 0
    assert {"settings", "nfe", "objective", "dtype", "weights_sha256", "seed"} <= metrics["sampling"].keys()
    assert set(metrics["same_noise_other_solvers"]) == {"euler 25", "dopri5"}
    assert all(other["nfe"] > 0 for other in metrics["same_noise_other_solvers"].values())
    before = (run / "model" / "model.safetensors").read_bytes()
    assert demo_digits.main([*options, "--require=0.999"]) == 1  # 20 steps do not make a good model
    assert "samples read as asked for" in capsys.readouterr().err
    assert (run / "model" / "model.safetensors").read_bytes() == before
