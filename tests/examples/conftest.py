"""The examples as modules, each test with a fresh accelerate and one CPU thread."""

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from examples.tiny_runs import TINY, fresh_state  # noqa: F401  # the fixture is used by every test here

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True, scope="session")
def _examples_on_the_path():
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture
def train(tmp_path):
    """Train a tiny model on digits: `train(name, *options)` gives the folder and the exit status."""

    def run(name, *options, steps=6):
        import train_dimsum

        out = tmp_path / name
        common = [
            "--data=digits",
            *TINY,
            "--batch-size=16",
            "--lr=1e-3",
            "--log-every=1",
            "--threads=1",
            "--sample-steps=1",
            "--quiet",
        ]
        status = train_dimsum.main([*common, f"--out={out}", f"--steps={steps}", *options])
        return out, status

    return run


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """Start the training script in another process: `launch(options, output=None)`, like `subprocess.Popen`."""
    from examples.forked import Forked

    # The server takes its path from the environment alone.
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (EXAMPLES.parent, EXAMPLES.parent / "tests")))
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["examples.forked"])
    forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)
    nowhere = tmp_path_factory.mktemp("launched") / "output.txt"
    return lambda options, output=nowhere: Forked(context, options, output)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of a few steps, with its model folder."""
    import train_dimsum

    out = tmp_path_factory.mktemp("trained") / "run"
    threads = torch.get_num_threads()
    options = [
        *TINY,
        "--batch-size=32",
        "--lr=2e-3",
        "--steps=30",
        "--ema=0.9",
        "--threads=1",
        "--sample-steps=1",
        "--quiet",
    ]
    assert train_dimsum.main(["--data=digits", f"--out={out}", *options]) == 0
    torch.set_num_threads(threads)
    return out


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("autoencoder")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(
        **blocks, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1,
        scaling_factor=0.5,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture
def latents(tmp_path):
    """A folder of random latents, 12 of them: `latents(classes)`."""
    from wavemamba.data import LatentShardWriter

    def write(classes):
        folder = tmp_path / "latents"
        description = {"shape": [4, 8, 8], "mirrored": True}
        writer = LatentShardWriter(folder, description, total=12, shard_size=8)
        for number, which in writer.missing():
            draw = torch.Generator().manual_seed(number)
            names = ("mean", "std", "mean_mirrored", "std_mirrored")
            tensors = {name: torch.rand(len(which), 4, 8, 8, generator=draw) for name in names}
            writer.write(number, {**tensors, "label": torch.tensor([i % classes for i in which])})
        writer.finish(tuple(f"class {i}" for i in range(classes)))
        return folder

    return write
