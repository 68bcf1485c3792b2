"""Train a class-conditional DiMSUM on handwritten digits, sample it and judge the samples, on two CPU cores.

    python examples/demo_digits.py --out runs/digits

Leaves in the folder: samples.png (a row for each digit), training.png (loss), denoising.png (noise to digit), model/
(for `DiMSUM.from_pretrained` and sample_dimsum.py) and metrics.json. The judges know nothing of the model: a support
vector machine fitted on real digits reads the samples, and a Fréchet distance compares them with the real ones.
The data are the 1,797 real images of 8 x 8 pixels in scikit-learn; nothing is downloaded. Interrupted, it goes on.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
import train_dimsum
from matplotlib import pyplot as plt
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from wavemamba import Sampler, WavemambaError, set_up_cpu
from wavemamba import training as wt
from wavemamba.commands.parser import RecipeParser, number
from wavemamba.data import Digits
from wavemamba.files import write_atomically
from wavemamba.sampling import Pictures, Settings, image_grid
from wavemamba.seeds import derive_seed

STEPS = 1000
TRAINING = [
    *("--data=digits", "--model=dimsum_tiny"),
    *("--set", "dim=64", "depth=4", "attention_heads=4", "fusion_heads=4", "class_dropout=0.1"),
    *("--path=gvp", "--prediction=velocity", "--batch-size=128", "--clip=2", "--ema=0.998"),
    *("--lr=2e-3", "--schedule=cosine", "--warmup=100", "--save-every=500", "--log-every=20"),
]
SETTINGS = Settings(solver="heun", steps=25, guidance=1.5)
BATCH = 100  # digits drawn at once
LONG = ("seeds", "classes", "class_names")
OTHERS = {"euler 25": {"solver": "euler", "steps": 25}, "dopri5": {"solver": "dopri5"}}


class Judge:
    """Reads digits with a support vector machine and measures distances in principal components of real digits."""

    def __init__(self, seed: int = 0) -> None:
        digits = Digits()
        self.real = digits.images.flatten(1).double().numpy()
        labels = digits.labels.numpy()
        train, test, train_labels, test_labels = train_test_split(
            self.real, labels, test_size=0.3, stratify=labels, random_state=seed
        )
        # scikit-learn's own choice for these images, whose pixels run from 0 to 16: gamma = 0.001.
        self.reader = SVC(gamma=0.001 * 8**2, C=10.0).fit(train, train_labels)
        self.test_accuracy = float(self.reader.score(test, test_labels))
        self.components = PCA(n_components=32, random_state=seed).fit(self.real)
        self.halves = train_test_split(self.real, test_size=0.5, stratify=labels, random_state=seed)

    def read(self, images: torch.Tensor) -> np.ndarray:
        """The digits that the machine sees in (n, 1, 8, 8)."""
        return self.reader.predict(_pixels(images))

    def distance(self, images: torch.Tensor) -> float:
        """Fréchet distance of images to the real digits."""
        return self._frechet(_pixels(images), self.real)

    def distance_of_halves(self) -> float:
        """The same between two halves of the real digits: what no model can be expected to fall below."""
        return self._frechet(*self.halves)

    def _frechet(self, a: np.ndarray, b: np.ndarray) -> float:
        """`|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` of Gaussians fitted to the principal components."""
        a, b = self.components.transform(a), self.components.transform(b)
        s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        roots = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real
        return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s1) + np.trace(s2) - 2 * roots.sum())


def _pixels(images: torch.Tensor) -> np.ndarray:
    return images.flatten(1).clamp(-1, 1).double().numpy()


def draw_loss(log: list[dict], path: Path) -> None:
    """The loss over the steps, as it was logged and smoothed."""
    rows = [row for row in log if "loss" in row]
    steps, loss = np.array([row["step"] for row in rows]), np.array([row["loss"] for row in rows])
    width = max(1, min(9, len(loss)))
    smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
    figure, axes = plt.subplots(figsize=(7, 4), dpi=110, layout="constrained")
    axes.plot(steps, loss, color="#9ecae1", linewidth=1, label="mean of 20 steps")
    axes.plot(steps[width // 2 :][: len(smooth)], smooth, color="#08519c", linewidth=2, label="smoothed")
    axes.set(xlabel="step", ylabel="velocity loss (mean squared error)", title="DiMSUM on handwritten digits")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%.1f"))
    axes.grid(True, which="both", color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


def draw_denoising(sampler: Sampler, path: Path, seed: int) -> None:
    """Every digit on its way from noise, a row each."""
    seeds = [derive_seed(seed, "denoising", digit) for digit in range(10)]
    frames = [(0.0, sampler.noise(seeds))]
    follow = {"callback": lambda at: frames.append((at.time, at.x.clone())), "progress": False}
    sampler(range(10), seeds, settings=SETTINGS, **follow)
    kept = [frames[i] for i in np.linspace(0, len(frames) - 1, 11).round().astype(int)]
    images = torch.stack([x for _, x in kept], dim=1).flatten(0, 1)
    labels = [f"t={time:.1f}" for time, _ in kept]
    grid = image_grid(images, len(kept), row_labels=sampler.class_names, column_labels=labels, tile=48)
    grid.save(path, optimize=True)


def measure(sampler: Sampler, judge: Judge, count: int, seed: int) -> tuple[dict, torch.Tensor]:
    """Sample `count` digits, the ten classes in turn, and judge them; then half of them again with other solvers."""
    wanted = [i % 10 for i in range(count)]
    seeds = [derive_seed(seed, "sample", i) for i in range(count)]
    pictures = sampler(wanted, seeds, settings=SETTINGS, batch_size=BATCH)
    images = pictures.images
    read = judge.read(images)
    result = {
        "samples": count,
        "accuracy": float((read == wanted).mean()),
        "accuracy_by_digit": {str(d): float((read[d::10] == d).mean()) for d in range(10)},
        "judge_accuracy_on_real_test_digits": judge.test_accuracy,
        "frechet_distance": judge.distance(images),
        "frechet_distance_of_two_real_halves": judge.distance_of_halves(),
        "sampling": {
            **{name: value for name, value in pictures.record.items() if name not in LONG},
            "nfe": evaluations(pictures),
            "seed": seed,
        },
        "same_noise_other_solvers": {},
    }
    some = count // 2
    for name, change in OTHERS.items():
        others = sampler(wanted[:some], seeds[:some], settings=SETTINGS, batch_size=BATCH, **change)
        other = others.images
        result["same_noise_other_solvers"][name] = {
            "samples": some,
            "nfe": evaluations(others),
            "accuracy": float((judge.read(other) == wanted[:some]).mean()),
            "read_as_the_same_digit": float((judge.read(other) == read[:some]).mean()),
        }
    return result, images


def evaluations(pictures: Pictures) -> float:
    """Calls of the model for one batch."""
    return pictures.record["evaluations"] / -(-len(pictures) // BATCH)


def build_parser() -> RecipeParser:
    """The options."""
    parser = RecipeParser(description=__doc__)
    parser.add_argument("--out", default="runs/digits", help="folder of the run")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps")
    parser.add_argument("--samples", type=int, default=500, help="samples that are judged, a multiple of 10")
    parser.add_argument("--seed", type=int, default=0, help="of training and sampling")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--require",
        type=number(float, 0, 1),
        default=0.0,
        help="fail unless accuracy and agreement of the solvers reach this",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    begun = time.monotonic()
    args = build_parser().parse(sys.argv[1:] if arguments is None else arguments)
    out = Path(args.out)
    torch.set_num_threads(args.threads)
    ours = [f"--out={out}", f"--steps={args.steps}", f"--seed={args.seed}", f"--threads={args.threads}"]
    status = train_dimsum.main([*TRAINING, *ours])
    log = wt.read_log(out / "log.jsonl")
    if status or not (log and log[-1]["step"] + 20 > args.steps):
        return status
    trained = time.monotonic() - begun
    try:
        sampler = Sampler.from_pretrained(out / "model")
        judged, images = measure(sampler, Judge(), args.samples, args.seed)
    except WavemambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = images[:120].unflatten(0, (-1, 10)).transpose(0, 1).flatten(0, 1)
    image_grid(rows, len(rows) // 10, row_labels=sampler.class_names, tile=40).save(out / "samples.png", optimize=True)
    draw_loss(log, out / "training.png")
    draw_denoising(sampler, out / "denoising.png", args.seed)
    final = [row["loss"] for row in log if "loss" in row][-5:]
    judged["training"] = {
        "steps": args.steps, "final_loss": sum(final) / len(final), "seed": args.seed, "threads": args.threads,
        "parameters": sum(p.numel() for p in sampler.model.parameters()), "options": TRAINING,
        "seconds_of_training_in_this_call": round(trained, 1), "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip
    write_atomically(out / "metrics.json", (json.dumps(judged, indent=1) + "\n").encode())
    print(
        f"{out}: an SVM reads the asked-for digit in {judged['accuracy']:.1%} of {args.samples} samples "
        f"({judged['judge_accuracy_on_real_test_digits']:.1%} of real test digits); Fréchet distance to real digits "
        f"{judged['frechet_distance']:.2f}, of their halves {judged['frechet_distance_of_two_real_halves']:.2f}"
    )
    reached = {"samples read as asked for": judged["accuracy"]} | {
        f"read as the same digit with {name}": row["read_as_the_same_digit"]
        for name, row in judged["same_noise_other_solvers"].items()
    }
    short = [f"{what} {share:.1%}" for what, share in reached.items() if not share >= args.require]
    if short:
        print(f"error: expected at least {args.require:.1%}, got {'; '.join(short)}", file=sys.stderr)
    return int(bool(short))


if __name__ == "__main__":
    set_up_cpu(restart=True)
    sys.exit(main())
