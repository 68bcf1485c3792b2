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


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "examples"))
    import evaluate
    import train_dimsum
    from accelerate import Accelerator

    Accelerator.end_training = lambda self: None  # one process group serves both scripts
    folder = Path(sys.argv[1])
    status = train_dimsum.main(train_options(folder / "two", "class_dropout=0.2", "drop_path_rate=0.1"))
    options = evaluate_options(folder / "model", folder / "images", folder / "two.json")
    sys.exit(status or evaluate.main(options, SmallFeatures()))
