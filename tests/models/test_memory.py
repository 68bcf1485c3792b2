"""A saved model is loaded within its own memory: built without values, and its weights are those that were read."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from wavemamba import create_model
from wavemamba.models.dit.released_names import NAMES

PEAK = Path("/proc/self/clear_refs")
MEASURE = """
import sys
from pathlib import Path
import torch, wavemamba
from wavemamba import Sampler
from wavemamba.diffusion import Objective
from wavemamba.models import dit, load_pretrained

loaders = {
    "load_pretrained": load_pretrained,
    "from_pretrained": wavemamba.DiMSUM.from_pretrained,
    "sampler": lambda path: Sampler.from_pretrained(path, objective=Objective()),
    "released": lambda path: dit.load_released(f"{path}/dit.safetensors"),
}
load, small, large = loaders[sys.argv[1]], *sys.argv[2:]

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

kept = load(small)  # what is imported and compiled once
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
model = load(large)
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a small and one with a large saved model, and beside it a file in DiT's released names."""
    paths = []
    for name, depth in (("small", 1), ("large", 4)):
        paths.append(tmp_path_factory.mktemp(name))
        model = create_model("dimsum_s2", img_size=8, depth=depth, num_classes=10)
        model.save_pretrained(paths[-1])
        state = create_model("dit_s2", img_size=8, depth=3 * depth, num_classes=10).state_dict()
        state = {NAMES.released(name): value for name, value in state.items()}
        save_file({**state, "pos_embed": state["pos_embed"].flatten(1, 2)}, paths[-1] / "dit.safetensors")
    return paths


@pytest.mark.skipif(not PEAK.exists(), reason="needs Linux's peak of a process")
@pytest.mark.parametrize("loader", ["load_pretrained", "from_pretrained", "sampler", "released"])
def test_the_peak_is_the_models_own_size(folders, loader):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, loader, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    size = (folders[1] / ("dit.safetensors" if loader == "released" else "model.safetensors")).stat().st_size
    assert size > 40 << 20
    assert 0.95 < int(done.stdout) / size < 1.1
