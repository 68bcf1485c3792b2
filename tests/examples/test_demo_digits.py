"""The digits demo: its judges, and all of its files from a run of a few steps."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from wavemamba import DiMSUM
from wavemamba.data import Digits
from wavemamba.training import TrainConfig, Trainer


@pytest.fixture(scope="module")
def parts():
    from demo_digits import parts_of

    return parts_of(0)


@pytest.fixture(scope="module")
def judge(parts):
    from demo_digits import Judge

    return Judge(parts.judge)


def test_no_digit_is_in_two_parts_and_training_has_the_first(parts, tmp_path):
    from demo_digits import HOLDOUT

    indices = [set(part.indices.tolist()) for part in parts]
    assert not any(a & b for a, b in itertools.combinations(indices, 2))
    assert set.union(*indices) == set(range(len(Digits())))
    trainer = Trainer(TrainConfig(data="digits", holdout=HOLDOUT, seed=0, out=str(tmp_path)))
    trainer.prepare()
    assert set(trainer.source.indices.tolist()) == indices[0]


def test_judge_reads_real_digits_and_refuses_noise(judge, parts):
    from demo_digits import labels_of, pixels_of

    real, labels = pixels_of(parts.report), labels_of(parts.report)
    assert (judge.read(real) == labels).mean() > 0.98
    noise = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (judge.read(noise) == np.arange(500) % 10).mean() < 0.3
    assert judge.distance(noise, real) > 10 * judge.distance(pixels_of(parts.train), real)
    assert judge.distance(real, real) == pytest.approx(0, abs=1e-6)


def test_guidance_is_chosen_among_what_is_read_surely_and_then_the_fewest_steps(monkeypatch, parts):
    import demo_digits
    from demo_digits import GUIDANCES, SOLVER_STEPS, choose, labels_of

    labels, wanted = labels_of(parts.choice), np.arange(len(parts.choice)) % 10

    class Drawn:
        def __init__(self, settings):
            self.images = settings

    class Stub:  # the smallest guidance has the least distance, and is not read; few steps are far off
        def read(self, images):
            if isinstance(images, torch.Tensor):
                return np.where(np.arange(len(labels)) == 0, -1, labels)
            return wanted if images.guidance > GUIDANCES[0] else -wanted

        def distance(self, images, real):
            return images.guidance + (0.5 if images.steps == SOLVER_STEPS[0] else 0.001 / images.steps)

    monkeypatch.setattr(demo_digits, "CLOSE", 1.1)
    settings, tried = choose(lambda *_, settings, **__: Drawn(settings), Stub(), parts.choice, 0)
    assert (settings.guidance, settings.steps) == (GUIDANCES[1], SOLVER_STEPS[1])
    assert len(tried) == len(GUIDANCES) + len(SOLVER_STEPS) - 1


def test_demo_leaves_its_files_and_says_what_falls_short(tmp_path, monkeypatch, capsys):
    import demo_digits

    smaller = [word.replace("dim=64", "dim=32").replace("depth=4", "depth=2") for word in demo_digits.TRAINING]
    monkeypatch.setattr(demo_digits, "TRAINING", [*smaller, "--batch-size=16", "--sample-steps=2", "--quiet"])
    monkeypatch.setattr(demo_digits, "GUIDANCES", (1.0, 1.5))
    monkeypatch.setattr(demo_digits, "SOLVER_STEPS", (1, 2))
    options = [f"--out={tmp_path / 'run'}", "--steps=20", "--samples=20", "--threads=1"]
    assert demo_digits.main(options) == 0
    run = tmp_path / "run"
    for name in ("samples.png", "training.png", "denoising.png"):
        assert 2_000 < (run / name).stat().st_size < 300_000
        assert min(Image.open(run / name).size) >= 80
    assert DiMSUM.from_pretrained(run / "model").num_classes == 10
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["accuracy"] <= 1
    assert metrics["frechet_distance"] > metrics["frechet_distance_of_training_digits"] > 0
    assert sum(metrics["digits"][part] for part in ("train", "judge", "choice", "report")) == 1797
    assert metrics["sampling"]["settings"]["guidance"] in {tried["guidance"] for tried in metrics["choice"]}
    assert {"settings", "nfe", "objective", "dtype", "weights_sha256", "seed"} <= metrics["sampling"].keys()
    assert set(metrics["same_noise_other_solvers"]) == {"euler 25", "dopri5"}
    assert all(other["nfe"] > 0 for other in metrics["same_noise_other_solvers"].values())
    before = (run / "model" / "model.safetensors").read_bytes()
    assert demo_digits.main([*options, "--require=0.999"]) == 1  # 20 steps do not make a good model
    assert "samples read as asked for" in capsys.readouterr().err
    assert (run / "model" / "model.safetensors").read_bytes() == before
