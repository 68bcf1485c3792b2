"""Tiny runs of the Trainer, each with a fresh accelerate and one CPU thread."""

import pytest
from examples.tiny_runs import fresh_state  # noqa: F401  # used by every test here

from wavemamba.training import TrainConfig

TINY = {"dim": 16, "depth": 2, "attention_every": 2, "attention_heads": 2, "fusion_heads": 2}


@pytest.fixture
def config(tmp_path):
    """`config(name, **options)`: a run of a few steps on digits in a folder of that name."""

    def make(name="run", **options):
        model = {**TINY, **options.pop("model_options", {})}
        given = {"data": "digits", "batch_size": 8, "lr": 1e-3, "steps": 4, "log_every": 1, "sample_steps": 1}
        return TrainConfig(**{**given, "quiet": True, "out": str(tmp_path / name), "model_options": model, **options})

    return make
