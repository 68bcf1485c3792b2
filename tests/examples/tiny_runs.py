"""Small runs of the examples; as a script what torchrun starts: train, then evaluate, in the folder given."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--set", "dim=16", "depth=2", "attention_every=2", "attention_heads=2", "fusion_heads=2"]


class SmallFeatures(nn.Module):
    """Fixed random convolutions in the place of Inception."""

    description = "fixed random convolutions"

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(6, 3, 4, 4, generator=generator) / 48

    def forward(self, images):
        maps = nn.functional.conv2d(images.float() / 127.5 - 1, self.weight, stride=2).tanh()
        return {"pool": maps.mean((2, 3)), "spatial": maps[:, :1].flatten(1)[:, :6], "logits": 5 * maps.amax((2, 3))}


def train_options(out, *more):
    options = ["--batch-size=16", "--lr=1e-3", "--log-every=1", "--steps=8", "--threads=1", "--sample-steps=1"]
    evaluation = ["--holdout=0.02", "--eval-every=4", "--save-every=4", "--quiet", f"--out={out}"]
    return ["--data=digits", *TINY, *more, *options, *evaluation]


def evaluate_options(model, reference, out):
    return [f"--model={model}", f"--reference={reference}", f"--out={out}", "--count=30", "--batch-size=7",
            "--solver=euler", "--steps=4"]  # fmt: skip


def shard_on_the_cpu():
    """What `accelerate launch --use_fsdp --fsdp_version 2` asks for, which accelerate refuses to do without a GPU."""
    from accelerate import state
    from accelerate.utils import DistributedType

    chosen = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    wrap = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "DiMSUMBlock"}
    os.environ.update(chosen | wrap)
    begin = state.AcceleratorState.__init__

    def begin_sharded(self, *args, fsdp_plugin=None, **options):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = begin_sharded


def train_twice(out, *more):
    """Train; damage the last checkpoint; go on from the one before; whether both ends are the same to the last bit."""
    import train_dimsum
    from torch import distributed as dist

    options = train_options(out, "class_dropout=0.2", "drop_path_rate=0.1", *more)
    ends = []
    for _ in range(2):
        fresh_accelerate()
        if train_dimsum.main(options):
            return False
        ends.append([(out / name).read_bytes() for name in ("model/model.safetensors", "log.jsonl")])
        dist.barrier()
        if dist.get_rank() == 0 and len(ends) == 1:
            files = (out / "checkpoints" / "step-00000008").rglob("*.*")
            damaged = max(files, key=lambda path: (path.suffix == ".safetensors", path.suffix == ".pt"))
            os.truncate(damaged, damaged.stat().st_size - 1)
        dist.barrier()
    return ends[0] == ends[1] and (out / "checkpoints" / "damaged-00000008").is_dir()


def train_sharded(folder):
    """The same with FSDP2, in float16 too; whether every model was sharded."""
    from accelerate import Accelerator
    from torch.distributed.fsdp import FSDPModule

    shard_on_the_cpu()
    sharded = []
    prepare = Accelerator.prepare

    def watched(self, *objects):
        prepared = prepare(self, *objects)
        sharded.append(isinstance(prepared[0], FSDPModule))
        return prepared

    Accelerator.prepare = watched
    return train_twice(folder / "sharded") and train_twice(folder / "half", "--precision=fp16") and all(sharded)


@pytest.fixture(autouse=True)
def fresh_state():
    """For each test a fresh accelerate and one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fresh_accelerate()
    yield
    torch.set_num_threads(threads)


def fresh_accelerate():
    """Forget accelerate's state, but not the process group."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "examples"))
    from accelerate import Accelerator

    from wavemamba.commands import evaluate

    Accelerator.end_training = lambda self: None  # one process group serves all scripts
    folder = Path(sys.argv[1])
    good = train_twice(folder / "two")
    options = evaluate_options(folder / "model", folder / "images", folder / "two.json")
    good = good and evaluate.main(options, SmallFeatures()) == 0
    sys.exit(not (good and train_sharded(folder)))
