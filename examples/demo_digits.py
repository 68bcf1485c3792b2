"""Train a class-conditional DiMSUM on handwritten digits, sample it and judge the samples, on two CPU cores.

    python examples/demo_digits.py --out runs/digits

Leaves in the folder: samples.png (a row for each digit, real ones beside), training.png (loss), denoising.png (noise to
digit), model/ (for `DiMSUM.from_pretrained` and sample_dimsum.py) and metrics.json. The data are the 1,797 real images
of 8 x 8 pixels in scikit-learn; nothing is downloaded. Half of them train the model. It never sees the others: some fit
the judge (a support vector machine that reads the samples, and the components that a Fréchet distance is measured in),
on some guidance and solver steps are chosen, and the rest are what metrics.json reports on. Interrupted, it goes on.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
import train_dimsum
from matplotlib import pyplot as plt
from sklearn.decomposition import PCA
from sklearn.svm import SVC

from wavemamba import Sampler, WavemambaError, set_up_cpu
from wavemamba import training as wt
from wavemamba.commands.parser import RecipeParser, number
from wavemamba.data import Digits, Part, hold_out
from wavemamba.files import write_atomically
from wavemamba.metrics import frechet_distance, nearest_distances
from wavemamba.sampling import Pictures, Settings, image_grid
from wavemamba.seeds import derive_seed

STEPS = 1000
HOLDOUT = 0.5
TRAINING = [
    *("--data=digits", f"--holdout={HOLDOUT}", "--model=dimsum_tiny"),
    *("--set", "dim=64", "depth=4", "attention_heads=4", "fusion_heads=4", "class_dropout=0.1"),
    *("--path=gvp", "--prediction=velocity", "--batch-size=128", "--clip=2", "--ema=0.998"),
    *("--lr=2e-3", "--schedule=cosine", "--warmup=100", "--save-every=500", "--log-every=20"),
]
GUIDANCES = (1.0, 1.25, 1.5, 2.0)
SOLVER_STEPS = (5, 8, 12)
CLOSE = 1.05  # fewer solver steps are chosen where the distance is within so many times the best
BATCH = 100  # digits drawn at once
LONG = ("seeds", "classes", "class_names")
OTHERS = {"euler 25": {"solver": "euler", "steps": 25}, "dopri5": {"solver": "dopri5"}}


class Parts(NamedTuple):
    """The digits, dealt out; what one part is used for, no other is."""

    train: Part
    """The model is trained on these."""
    judge: Part
    """The judge is fitted on these."""
    choice: Part
    """Guidance and solver steps are chosen on these."""
    report: Part
    """The samples are compared with these."""


def parts_of(seed: int) -> Parts:
    """The parts of a run; the first is the one that training has, by the same draw."""
    train, held = hold_out(Digits(), HOLDOUT, seed)
    fit, choose = round(0.6 * len(held)), round(0.8 * len(held))
    return Parts(train, *(Part(held.source, held.indices[a:b]) for a, b in ((0, fit), (fit, choose), (choose, None))))


class Judge:
    """Reads digits with a support vector machine, and measures distances in principal components of real digits."""

    def __init__(self, real: Part, seed: int = 0) -> None:
        pixels = pixels_of(real)
        # Small digits lie anywhere in their frame: the machine also learns from those that are moved by one pixel.
        moved = [pixels.roll(by, (2, 3)) for by in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))]
        labels = np.tile(labels_of(real), len(moved))
        # scikit-learn's own choice for these images, whose pixels run from 0 to 16: gamma = 0.001.
        self.reader = SVC(gamma=0.001 * 8**2, C=10.0).fit(flat(torch.cat(moved)), labels)
        self.components = PCA(n_components=32, random_state=seed).fit(flat(pixels))

    def read(self, images: torch.Tensor) -> np.ndarray:
        """The digits that the machine sees in (n, 1, 8, 8)."""
        return self.reader.predict(flat(images))

    def distance(self, images: torch.Tensor, real: torch.Tensor) -> float:
        """Fréchet distance of images to real digits, both (n, 1, 8, 8)."""
        a, b = (torch.from_numpy(self.components.transform(flat(x))) for x in (images, real))
        return frechet_distance(a, b)


def pixels_of(part: Part) -> torch.Tensor:
    """(n, 1, 8, 8)."""
    return torch.stack([part.example(i)[0] for i in range(len(part))])


def labels_of(part: Part) -> np.ndarray:
    """(n,)."""
    return np.array([part.example(i)[1] for i in range(len(part))])


def flat(images: torch.Tensor) -> np.ndarray:
    """Rows of pixels in [-1, 1]."""
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


def draw_denoising(sampler: Sampler, settings: Settings, path: Path, seed: int) -> None:
    """Every digit on its way from noise, a row each."""
    seeds = [derive_seed(seed, "denoising", digit) for digit in range(10)]
    frames = [(0.0, sampler.noise(seeds))]
    follow = {"callback": lambda at: frames.append((at.time, at.x.clone())), "progress": False}
    sampler(range(10), seeds, settings=settings, **follow)
    kept = [frames[i] for i in np.linspace(0, len(frames) - 1, min(len(frames), 11)).round().astype(int)]
    images = torch.stack([x for _, x in kept], dim=1).flatten(0, 1)
    labels = [f"t={time:.1f}" for time, _ in kept]
    grid = image_grid(images, len(kept), row_labels=sampler.class_names, column_labels=labels, tile=48)
    grid.save(path, optimize=True)


def draw_samples(sampler: Sampler, images: torch.Tensor, real: Part, path: Path) -> None:
    """Samples and real digits that no part of the run has learnt from, a row each digit."""
    pixels, labels = pixels_of(real), labels_of(real)
    columns = [images[10 * i :][:10] for i in range(min(12, len(images) // 10))]
    beside = [torch.stack([pixels[labels == digit][i] for digit in range(10)]) for i in range(5)]
    shown = torch.stack(columns + beside, dim=1).flatten(0, 1)
    heads = ["sampled", *[""] * (len(columns) - 1), "real", *[""] * (len(beside) - 1)]
    grid = image_grid(shown, len(heads), row_labels=sampler.class_names, column_labels=heads, tile=40)
    grid.save(path, optimize=True)


def choose(sampler: Sampler, judge: Judge, real: Part, seed: int) -> tuple[Settings, list[dict]]:
    """The guidance with the least distance to real digits of those whose samples are read as surely as real ones are.

    Then the fewest solver steps that come close to the least distance.
    """
    pixels, wanted = pixels_of(real), [i % 10 for i in range(len(real))]
    seeds = [derive_seed(seed, "choice", i) for i in range(len(real))]
    sure = (judge.read(pixels) == labels_of(real)).mean()
    tried = []

    def attempt(guidance: float, steps: int) -> dict:
        settings = Settings(solver="heun", steps=steps, guidance=guidance)
        images = sampler(wanted, seeds, settings=settings, batch_size=BATCH, progress=False).images
        read = float((judge.read(images) == wanted).mean())
        distance = judge.distance(images, pixels)
        tried.append({"guidance": guidance, "steps": steps, "accuracy": read, "frechet_distance": distance})
        return tried[-1]

    middle = SOLVER_STEPS[len(SOLVER_STEPS) // 2]
    by_guidance = [attempt(guidance, middle) for guidance in GUIDANCES]
    sure = min(sure, max(found["accuracy"] for found in by_guidance))
    best = min((f for f in by_guidance if f["accuracy"] >= sure), key=lambda found: found["frechet_distance"])
    by_steps = [best if steps == middle else attempt(best["guidance"], steps) for steps in SOLVER_STEPS]
    near = CLOSE * min(found["frechet_distance"] for found in by_steps)
    steps = min(found["steps"] for found in by_steps if found["frechet_distance"] <= near)
    return Settings(solver="heun", steps=steps, guidance=best["guidance"]), tried


def measure(sampler: Sampler, parts: Parts, count: int, seed: int) -> tuple[dict, torch.Tensor, Settings]:
    """Choose how to sample, draw `count` digits, the classes in turn, and judge them; half again with other solvers."""
    judge, real, train = Judge(parts.judge), pixels_of(parts.report), pixels_of(parts.train)
    settings, tried = choose(sampler, judge, parts.choice, seed)
    wanted = [i % 10 for i in range(count)]
    seeds = [derive_seed(seed, "sample", i) for i in range(count)]
    pictures = sampler(wanted, seeds, settings=settings, batch_size=BATCH)
    images = pictures.images
    read = judge.read(images)
    nearest = {"samples": images.clamp(-1, 1), "report": real}
    result = {
        "samples": count,
        "accuracy": float((read == wanted).mean()),
        "accuracy_by_digit": {str(d): float((read[d::10] == d).mean()) for d in range(10)},
        "judge_accuracy_on_real_digits": float((judge.read(real) == labels_of(parts.report)).mean()),
        "frechet_distance": judge.distance(images, real),
        "frechet_distance_of_training_digits": judge.distance(train[:count], real),
        "pixels_to_the_nearest_training_digit": {
            name: float(nearest_distances(x.flatten(1), train.flatten(1)).median()) for name, x in nearest.items()
        },
        "digits": {
            **{name: len(part) for name, part in parts._asdict().items()},
            "about": "no digit is in two parts: the model is trained on the first, the judge fitted on the second, "
            "guidance and solver steps chosen on the third; all numbers here but those of the choice are of the last",
        },
        "choice": tried,
        "sampling": {
            **{name: value for name, value in pictures.record.items() if name not in LONG},
            "nfe": evaluations(pictures),
            "seed": seed,
        },
        "same_noise_other_solvers": {},
    }
    some = count // 2
    for name, change in OTHERS.items():
        others = sampler(wanted[:some], seeds[:some], settings=settings, batch_size=BATCH, **change)
        other = others.images
        result["same_noise_other_solvers"][name] = {
            "samples": some,
            "nfe": evaluations(others),
            "accuracy": float((judge.read(other) == wanted[:some]).mean()),
            "read_as_the_same_digit": float((judge.read(other) == read[:some]).mean()),
        }
    return result, images, settings


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
        parts = parts_of(args.seed)
        judged, images, settings = measure(sampler, parts, args.samples, args.seed)
    except WavemambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    draw_samples(sampler, images, parts.report, out / "samples.png")
    draw_loss(log, out / "training.png")
    draw_denoising(sampler, settings, out / "denoising.png", args.seed)
    final = [row["loss"] for row in log if "loss" in row][-5:]
    judged["training"] = {
        "steps": args.steps, "final_loss": sum(final) / len(final), "seed": args.seed, "threads": args.threads,
        "parameters": sum(p.numel() for p in sampler.model.parameters()), "options": TRAINING,
        "seconds_of_training_in_this_call": round(trained, 1), "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip
    write_atomically(out / "metrics.json", (json.dumps(judged, indent=1) + "\n").encode())
    print(
        f"{out}: an SVM reads the asked-for digit in {judged['accuracy']:.1%} of {args.samples} samples "
        f"({judged['judge_accuracy_on_real_digits']:.1%} of real ones); Fréchet distance to real digits "
        f"{judged['frechet_distance']:.2f}, of those trained on {judged['frechet_distance_of_training_digits']:.2f}"
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
