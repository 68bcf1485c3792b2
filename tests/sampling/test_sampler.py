from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wavemamba import ConfigError, Sampler, ShapeError, SolverError
from wavemamba.diffusion import (
    Autoencoder,
    ClassifierFreeGuidance,
    FixedStepSolver,
    Objective,
    SdeSolver,
    sample_noise,
    sample_ode,
)
from wavemamba.models import TrainedFor

QUICK = {"solver": "heun", "steps": 2, "progress": False}


def agree(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_saved_model_is_sampled_as_by_hand(folder, model):
    pictures = Sampler.from_pretrained(folder)(classes=["cat", 2], seeds=[5, 6], guidance=2.0, **QUICK)
    guided = ClassifierFreeGuidance(model, 2.0)
    noise = sample_noise((2, 1, 4, 4), seeds=[5, 6])
    by_hand = sample_ode(guided, noise, Objective("gvp"), solver="heun", steps=2, y=torch.tensor([0, 2]))
    agree(pictures.images, by_hand)
    assert pictures.class_names == ("cat", "eel")


@pytest.mark.parametrize(
    "how",
    [
        {"solver": "heun", "steps": 2},
        {"solver": "dopri5", "rtol": 1e-2, "atol": 1e-2},
        {"solver": "adaptive_heun", "rtol": 1e-1, "atol": 1e-1},
        {"solver": "implicit_adams", "steps": 4},
        {"solver": "euler_maruyama", "steps": 3},
        {"solver": "heun", "diffusion": "constant", "steps": 3},
    ],
    ids=str,
)
def test_a_picture_depends_on_its_own_seed_alone(model, how):
    sampler = Sampler(model)
    together = sampler([0, 1, 2], [7, 8, 9], progress=False, **how).images
    agree(sampler([1], [8], progress=False, **how).images, together[1:2])
    agree(sampler([2, 1, 0], [9, 8, 7], batch_size=2, progress=False, **how).images, together.flip(0))
    assert not torch.allclose(sampler([1], [10], progress=False, **how).images, together[1:2])


def test_a_live_model_is_sampled_in_evaluation_mode_and_left_as_it_was(make_model):
    model = make_model(class_dropout=0.9)
    still = Sampler(model)([0], [0], **QUICK).images
    model.train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    agree(Sampler(model)([0], [0], **QUICK).images, still)
    assert [module.training for module in model.modules()] == modes
    nn.init.constant_(model.head.linear.weight, math.nan)
    with pytest.raises(SolverError):
        Sampler(model)([0], [0], **QUICK)
    assert [module.training for module in model.modules()] == modes


def test_the_record_says_what_moves_the_result(folder, make_model):
    sampler = Sampler.from_pretrained(folder)
    record = sampler(["dog"], [3], guidance=1.0, **QUICK).record
    assert json.loads(json.dumps(record)) == record
    assert record["model"] == str(folder)
    assert record["objective"] == Objective("gvp").to_dict()
    assert record["settings"] == {
        "kind": "ode", "solver": "heun2", "steps": 2, "atol": 1e-6, "rtol": 1e-3, "step_control": "sample",
        "max_evaluations": 20_000, "guidance": 1.0,
    }  # fmt: skip
    assert (record["seeds"], record["classes"], record["class_names"]) == ([3], [1], ["dog"])
    assert (record["size"], record["dtype"], record["device"], record["evaluations"]) == ([4, 4], "float32", "cpu", 4)
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    weights = {Sampler(make_model(seed))([0], [0], **QUICK).record["weights_sha256"] for seed in (0, 0, 1)}
    assert len(weights) == 2
    assert record["weights_sha256"] in weights
    noisy = sampler(["dog"], [3], diffusion="sigma", guidance_schedule="power_cosine", steps=2).record["settings"]
    assert (noisy["kind"], noisy["solver"], noisy["guidance"]) == ("sde", "euler_maruyama", 1.5)
    assert noisy["guidance_schedule"] == "power_cosine"


def test_classes_and_seeds(model):
    sampler = Sampler(model)
    one = sampler("eel", 4, **QUICK)
    agree(sampler(2, [4, 5], **QUICK).images[:1], one.images)
    agree(sampler(["2", np.int64(2)], np.array([4, 5]), **QUICK).images[:1], one.images)
    assert sampler([0, 1, 2], **QUICK).record["seeds"] == [0, 1, 2]
    assert sampler([model.null_class], [0], guidance=1, **QUICK).class_names == ("any",)
    for classes in ([3.5], [7], ["7"], [-1]):
        with pytest.raises(ConfigError, match="classes"):
            sampler(classes, [0], **QUICK)
    with pytest.raises(ConfigError, match="did you mean 'dog'"):
        sampler(["dogg"], [0], **QUICK)
    with pytest.raises(ConfigError, match="of 3 classes"):
        sampler(seeds=[0], **QUICK)
    with pytest.raises(ShapeError, match="one for each of 2"):
        sampler([0, 1], [0, 1, 2], **QUICK)
    with pytest.raises(ConfigError, match="seeds"):
        sampler([0], [0.5], **QUICK)
    with pytest.raises(ConfigError, match="did you mean guidance"):
        sampler([0], [0], guidence=2.0, **QUICK)


def test_an_unconditional_model(make_model):
    sampler = Sampler(make_model(num_classes=0))
    assert sampler(seeds=[1, 2], **QUICK).images.shape == (2, 1, 4, 4)
    assert len(sampler(**QUICK)) == 1
    with pytest.raises(ConfigError, match="knows no classes"):
        sampler([0], [0], **QUICK)
    with pytest.raises(ConfigError, match="guidance"):
        sampler(seeds=[1], guidance=2.0, **QUICK)


def test_sizes(model):
    sampler = Sampler(model)
    assert sampler([0], [0], size=8, **QUICK).images.shape == (1, 1, 8, 8)
    assert sampler([0], [0], size=(4, 8), **QUICK).images.shape == (1, 1, 4, 8)
    for size in (2.5, (4, 4, 4), 0):
        with pytest.raises(ConfigError, match="size"):
            sampler([0], [0], size=size, **QUICK)


def test_a_model_that_does_not_say_what_it_was_trained_for(make_model):
    model = make_model()
    model.trained_for = TrainedFor()
    with pytest.raises(ConfigError, match="pass objective="):
        Sampler(model)
    assert Sampler(model, Objective("linear"))([1], [0], **QUICK).class_names == ("1",)


class Doubling(nn.Module):
    """As an AutoencoderKL that enlarges twofold and keeps the first channel."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        fields = {"scaling_factor": 0.5, "shift_factor": None, "latent_channels": channels, "in_channels": 1}
        self.config = type("Config", (), {**fields, "block_out_channels": (1, 1)})

    def decode(self, z):
        sample = nn.functional.interpolate(z[:, :1], scale_factor=2)
        return type("Output", (), {"sample": sample})


def test_latents_are_decoded(model):
    sampler = Sampler(model, autoencoder=Autoencoder(Doubling()))
    pictures, latents = (sampler([0, 1], [0, 1], decode=decode, **QUICK).images for decode in (True, False))
    torch.testing.assert_close(pictures, nn.functional.interpolate(latents / 0.5, scale_factor=2))
    assert sampler([0], [0], size=12, **QUICK).images.shape == (1, 1, 12, 12)
    with pytest.raises(ShapeError, match="divisible by 2"):
        sampler([0], [0], size=5, **QUICK)
    with pytest.raises(ConfigError, match="1 channels"):
        Sampler(model, autoencoder=Autoencoder(Doubling(4)))


def test_solvers_of_ones_own_by_object(model):
    def ralston(slope, x, now, after):
        h = after - now
        first = slope(now, x)
        return x + h * (first / 4 + 3 / 4 * slope(now + 2 / 3 * h, x + 2 / 3 * h * first))

    sampler = Sampler(model)
    mine = sampler([0], [0], solver=FixedStepSolver("ralston", ralston), steps=40, progress=False)
    exact = sampler([0], [0], solver="rk4", steps=20, progress=False).images
    torch.testing.assert_close(mine.images, exact, rtol=1e-3, atol=1e-3)
    assert mine.record["settings"]["solver"] == "ralston"

    def still(drift, diffusion, x, now, after, noise):
        return x + (after - now) * drift(x, now)

    options = {"diffusion": "none", "last_step": "euler", "last_step_size": 0.02, "steps": 50, "progress": False}
    quiet = sampler([0], [0], solver=SdeSolver("still", still), **options)
    agree(quiet.images, sampler([0], [0], solver="euler", steps=50, progress=False).images)
    assert quiet.record["settings"]["solver"] == "still"
    with pytest.raises(ConfigError, match="adds no noise"):
        sampler([0], [0], solver=FixedStepSolver("ralston", ralston), diffusion="sigma")
    with pytest.raises(ConfigError, match="did you mean 'dopri5'"):
        sampler([0], [0], solver="dopri55")


def test_progress_is_told_and_nothing_is_printed(model, capsys):
    times = []
    Sampler(model)([0, 1], [0, 1], solver="heun", steps=2, batch_size=1, callback=lambda at: times.append(at.time))
    assert times == [0.5, 1.0, 0.5, 1.0]
    assert capsys.readouterr() == ("", "")


def test_pictures_are_shown_and_saved(model, tmp_path):
    pictures = Sampler(model)([0, 0, 1, 1], [0, 1, 2, 3], **QUICK)
    assert len(pictures) == 4
    assert len(repr(pictures)) < 100
    assert all(picture.mode == "L" and picture.size == (4, 4) for picture in pictures.to_pil())
    wide, tall = pictures.grid(4, row_labels=[]).size
    assert wide > tall
    assert pictures.grid().size[1] > tall
    saved = pictures.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in saved.iterdir()) == [*(f"0000{i}.png" for i in range(4)), "record.json"]
    with Image.open(saved / "00002.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(pictures.to_pil()[2]))
    assert json.loads((saved / "record.json").read_text()) == pictures.record


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_model_inside_others_is_sampled_as_the_model(model, one_process):
    expected = Sampler(model)([0, 1], [0, 1], **QUICK)
    for wrapped in (nn.parallel.DistributedDataParallel(model), torch.compile(model, backend="eager", disable=True)):
        pictures = Sampler(wrapped)([0, 1], [0, 1], **QUICK)
        agree(pictures.images, expected.images)
        assert pictures.record["family"] == "dimsum"
    for other in (nn.Linear(2, 2), lambda x, t: x):
        with pytest.raises(ConfigError, match="in_chans"):
            Sampler(other)


def test_further_conditions_go_to_their_pictures(make_model):
    class Brighter(nn.Module):
        """Adds a brightness to what the model says."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.in_chans, self.img_size = inner, 1, (4, 4)
            self.num_classes, self.null_class, self.trained_for = 3, inner.null_class, inner.trained_for

        def forward(self, x, t, y=None, *, light, gain=1.0):
            return self.inner(x, t, y) + gain * light.view(-1, 1, 1, 1)

    sampler = Sampler(Brighter(make_model()))
    light = torch.tensor([0.0, 1.0, 2.0])
    whole = sampler([0, 1, 2], [4, 5, 6], conditions={"light": light, "gain": 2.0}, batch_size=2, **QUICK)
    last = sampler([2], [6], conditions={"light": light[2:], "gain": 2.0}, **QUICK)
    agree(whole.images[2:], last.images)
    assert whole.record["conditions"]["gain"] == "2.0"
    assert whole.record["conditions"]["light"] != last.record["conditions"]["light"]
    with pytest.raises(ConfigError, match="did you mean light"):
        sampler([0], [0], conditions={"ligth": light[:1]}, **QUICK)
