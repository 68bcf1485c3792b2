from __future__ import annotations

import pytest
import torch

from wavemamba import create_model
from wavemamba.diffusion import Objective
from wavemamba.models import TrainedFor

CLASSES = ("cat", "dog", "eel")


@pytest.fixture(scope="session")
def make_model():
    def make(seed: int = 0, **changes):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            settings = {"img_size": 4, "in_chans": 1, "dim": 16, "depth": 1, "num_classes": 3, **changes}
            model = create_model("dimsum_tiny", **settings)
            torch.nn.init.normal_(model.head.linear.weight, std=0.3)
        names = CLASSES if model.num_classes else ()
        model.trained_for = TrainedFor(objective=Objective("gvp").to_dict(), class_names=names)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def model(make_model):
    return make_model()


@pytest.fixture(scope="session")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(path)
    return path
