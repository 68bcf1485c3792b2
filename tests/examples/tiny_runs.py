"""Small runs of the examples; as a script what torchrun starts: train, then evaluate, in the folder given."""

import sys
from pathlib import Path

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
            "--image-size=8", "--solver=euler", "--steps=4"]  # fmt: skip


def small_state(shard=lambda module: module):
    """A model, its average, an optimiser and a schedule as a `TrainState`, and a step for it."""
    from timm.utils import ModelEmaV3

    from wavemamba import create_model
    from wavemamba.training import TrainState, parse_overrides, seed_everything

    seed_everything(0)
    model = create_model("dimsum_tiny", img_size=8, in_chans=1, num_classes=10, **parse_overrides(TINY[1:]))
    ema = ModelEmaV3(model, decay=0.5)
    model, ema.module = shard(model), shard(ema.module)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    state = TrainState(model, ema.module, optimizer, schedule)

    def step():
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(state.step))
        model(x, torch.tensor([0.2, 0.7]), torch.tensor([1, 2])).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        state.step += 1
        ema.update(model, step=state.step)

    return state, step


def save_sharded(folder):
    """Shard a state over the processes (FSDP2), save it, resume from it; say whether the next step is the same."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from wavemamba.training import Checkpoints

    mesh = init_device_mesh("cpu", (2,))

    def shard(model):
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    state, step = small_state(shard)
    step()
    step()
    saved = state.collect()
    if torch.distributed.get_rank() == 0:
        Checkpoints(folder / "sharded").save(2, saved)
    torch.distributed.barrier()
    resumed, step_of_resumed = small_state(shard)
    resumed.restore(Checkpoints(folder / "sharded").load()[1])
    step()
    step_of_resumed()
    expected, found = state.averaged_weights(), resumed.averaged_weights()
    return all(torch.equal(expected[name], found[name]) for name in expected)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "examples"))
    import evaluate
    import train_dimsum
    from accelerate import Accelerator

    Accelerator.end_training = lambda self: None  # one process group serves both scripts
    folder = Path(sys.argv[1])
    status = train_dimsum.main(train_options(folder / "two", "class_dropout=0.2", "drop_path_rate=0.1"))
    options = evaluate_options(folder / "model", folder / "images", folder / "two.json")
    status = status or evaluate.main(options, SmallFeatures())
    sys.exit(status or not save_sharded(folder))
