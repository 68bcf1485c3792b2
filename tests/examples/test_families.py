"""Every family trains by the one script and is sampled by the one call, on nothing but its name and its sizes."""

import pytest
import torch

from wavemamba import Sampler
from wavemamba.models.registry import library_families
from wavemamba.training import read_log

FAMILIES = {
    "dimsum": ("dimsum_s2", ["attention_every=2", "attention_heads=2", "fusion_heads=2"]),
    "dit": ("dit_s2", ["num_heads=2"]),
    "sit": ("sit_s2", ["num_heads=2"]),
    "zigma": ("zigma_s2", []),
    "diffussm": ("diffussm_s", []),
}


def test_every_family_is_here():
    assert set(FAMILIES) - {"sit"} == set(library_families())  # SiT is a DiT on another clock


@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_and_is_sampled(family, tmp_path):
    import train_dimsum

    name, options = FAMILIES[family]
    common = ["--batch-size=8", "--steps=3", "--log-every=1", "--threads=1", "--sample-steps=1", "--quiet"]
    sizes = ["--set", "dim=16", "depth=2", *options]
    assert train_dimsum.main(["--data=digits", f"--model={name}", *sizes, *common, f"--out={tmp_path}"]) == 0
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]

    sampler = Sampler.from_pretrained(tmp_path / "model")
    moved = [p for name, p in sampler.model.named_parameters() if name.startswith("head.")]
    assert any(p.any() for p in moved)
    guidance = 1.0 if sampler.model.null_class is None else 1.5  # a released ZigMa has no null class
    pictures = sampler(classes=[3, 8], seeds=[0, 1], guidance=guidance, solver="euler", steps=2, progress=False)
    assert pictures.images.shape == (2, 1, 8, 8)
    assert torch.isfinite(pictures.images).all()


def test_a_model_that_asks_for_text_says_what_it_lacks(tmp_path, capsys):
    import train_dimsum

    sizes = ["--set", "dim=16", "depth=2", "context_dim=8", "num_classes=0"]
    assert train_dimsum.main(["--data=digits", "--model=zigma_s2", *sizes, "--quiet", f"--out={tmp_path}"]) == 1
    assert "pass the text encoder's tokens" in capsys.readouterr().err
