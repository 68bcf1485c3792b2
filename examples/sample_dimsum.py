"""Sample from a model that examples/train_dimsum.py (or `save_pretrained`) wrote.

    python examples/sample_dimsum.py --model runs/digits/model --out samples.png
    python examples/sample_dimsum.py --model runs/digits/model --classes 3 8 --per-class 16 --solver euler --steps 25

Writes one labelled grid, a row for each class, and beside it NAME.json with everything that moves the result; with
--npz and --png-folder also the single images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from wavemamba import CheckpointError, DiMSUM, WavemambaError
from wavemamba.commands.parser import RecipeParser, device, number
from wavemamba.diffusion import (
    GUIDANCE_SCHEDULES,
    ODE_SOLVERS,
    STEP_CONTROLS,
    Autoencoder,
    ClassifierFreeGuidance,
    Objective,
    SampleInfo,
    sample_noise,
    sample_ode,
)
from wavemamba.errors import ConfigError
from wavemamba.files import write_atomically
from wavemamba.sampling import image_grid, to_uint8
from wavemamba.seeds import derive_seed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Everything that moves a sample, beside the model, the labels and the seeds."""

    solver: str = "dopri5"
    steps: int = 50
    atol: float = 1e-6
    rtol: float = 1e-3
    step_control: str | None = None
    guidance: float = 1.5
    guidance_schedule: str = "constant"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    dtype: str = "float32"
    autoencoder: str | None = None

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> SamplingOptions:
        """From the options that `add_sampling_options` added."""
        names = cls.__dataclass_fields__
        values = {name: value for name, value in vars(args).items() if name in names}
        return cls(**{**values, "guidance_interval": tuple(args.guidance_interval)})

    @property
    def control(self) -> str:
        """Who shares an adaptive solver's steps; if not said, nobody, where the solver can do that."""
        return self.step_control or ("sample" if self.solver in ("dopri5", "bosh3") else "batch")


class Sampler:
    """A saved model with a way to sample from it.

    Args:
        folder: what `save_pretrained` wrote; `training.json` there says path, prediction and class names.
        options: how to sample.
        device: where.
    """

    def __init__(self, folder: str | Path, options: SamplingOptions, device: torch.device | str = "cpu") -> None:
        self.options, self.device = options, torch.device(device)
        self.model = DiMSUM.from_pretrained(folder).to(self.device, DTYPES[options.dtype])
        self.about = read_about(Path(folder) / "training.json")
        self.objective = Objective(self.about.get("path", "gvp"), self.about.get("prediction", "velocity"))
        self.classes = tuple(self.about.get("classes") or map(str, range(max(1, self.model.num_classes))))
        self.shape = (self.model.config.in_chans, *self.model.config.img_size)
        source = options.autoencoder or self.about.get("autoencoder")
        self.autoencoder = Autoencoder.from_pretrained(source, device=self.device) if source else None
        guided = self.model.num_classes > 0 and options.guidance != 1
        self.predict = self._guided(options) if guided else self.model

    def _guided(self, options: SamplingOptions) -> ClassifierFreeGuidance:
        return ClassifierFreeGuidance(
            self.model, options.guidance, schedule=options.guidance_schedule, interval=options.guidance_interval
        )

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Where the samples of these seeds start."""
        return sample_noise(
            (len(seeds), *self.shape), seeds=seeds, device=self.device, dtype=DTYPES[self.options.dtype]
        )

    def draw(self, labels: Sequence[int], seeds: Sequence[int], callback=None) -> tuple[Tensor, SampleInfo]:
        """One sample for each label, made from the noise of its seed; images, in about [-1, 1], on the CPU."""
        known = {"y": torch.tensor(labels, device=self.device)} if self.model.num_classes else {}
        o = self.options
        samples, info = sample_ode(
            self.predict,
            self.noise(seeds),
            self.objective,
            **{"solver": o.solver, "steps": o.steps, "atol": o.atol, "rtol": o.rtol, "step_control": o.control},
            callback=callback,
            return_info=True,
            **known,
        )
        decode = self.autoencoder.decode if self.autoencoder else lambda latents: latents
        images = torch.cat([decode(some).float().cpu() for some in samples.split(16)])
        if not images.isfinite().all():
            raise WavemambaError("samples: expected finite numbers, got NaN or infinite ones; try --dtype float32")
        return images, info

    def draw_batches(self, labels: Sequence[int], seed: int, size: int, title: str) -> tuple[Tensor, int]:
        """As `draw`, in batches of `size` and with a progress bar; also the function evaluations of the first batch.

        Sample `i` is made from the noise of `derive_seed(seed, "sample", i)`, whatever the batches.
        """
        images, calls = [], 0
        with tqdm(total=len(labels), desc=title, unit="image", disable=not sys.stderr.isatty()) as bar:
            for start in range(0, len(labels), size):
                part = labels[start : start + size]
                seeds = [derive_seed(seed, "sample", i) for i in range(start, start + len(part))]
                drawn, info = self.draw(part, seeds)
                calls = calls or info.nfe
                images.append(drawn)
                bar.update(len(part))
        return torch.cat(images), calls

    def describe(self) -> dict:
        """Everything that moves a sample, for the file beside a score."""
        o = {**asdict(self.options), "step_control": self.options.control}
        if self.predict is self.model:
            o["guidance"] = 1.0
        trained = {key: self.about.get(key) for key in ("path", "prediction", "weights", "step", "ema")}
        return {**o, **trained, "autoencoder": o["autoencoder"] or self.about.get("autoencoder")}


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `SamplingOptions.from_args` reads."""
    d = SamplingOptions()
    add = parser.add_argument_group("sampling").add_argument
    add("--solver", choices=sorted(ODE_SOLVERS), default=d.solver, help="of the probability flow")
    add("--steps", type=number(int, 1), default=d.steps, help="of a fixed-step solver; Heun calls the model twice")
    add("--atol", type=number(float, 0), default=d.atol, help="absolute tolerance of an adaptive solver")
    add("--rtol", type=number(float, 0), default=d.rtol, help="relative tolerance of an adaptive solver")
    add("--step-control", choices=STEP_CONTROLS,
        help="who shares the steps of an adaptive solver (default: sample with dopri5 and bosh3)")  # fmt: skip
    add("--guidance", type=number(float, 0), default=d.guidance, help="classifier-free guidance; 1: none")
    add("--guidance-schedule", choices=GUIDANCE_SCHEDULES, default=d.guidance_schedule, help="over time")
    add("--guidance-interval", type=float, nargs=2, default=d.guidance_interval, metavar=("FROM", "TO"),
        help="times in which guidance acts, 0 noise, 1 data")  # fmt: skip
    add("--dtype", choices=sorted(DTYPES), default=d.dtype, help="of the model; solvers keep float32 at least")
    add("--autoencoder", help="folder or hub id that decodes latents (default: the one of the training run)")


def read_about(path: Path) -> dict:
    """What training wrote beside a model; nothing where there is no such file.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        about = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, got {error}; export the model again") from error
    if not isinstance(about, dict) or not isinstance(about.get("classes", []), list):
        raise CheckpointError(f"{path}: expected a JSON object with a list of classes; export the model again")
    return about


def class_numbers(wanted: Sequence[str] | None, classes: Sequence[str]) -> list[int]:
    """Classes by name or number; all of them where None.

    Raises:
        ConfigError: there is no such class.
    """
    if wanted is None:
        return list(range(len(classes)))
    numbers = []
    for word in wanted:
        if word in classes:
            numbers.append(list(classes).index(word))
        elif word.isdigit() and int(word) < len(classes):
            numbers.append(int(word))
        else:
            shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise ConfigError(
                f"classes: expected names or numbers below {len(classes)}, got {word!r}; there are {shown}"
            )
    return numbers


def build_parser() -> RecipeParser:
    """The options."""
    parser = RecipeParser(description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="folder with model.safetensors and config.json")
    add("--out", default="samples.png", help="the labelled grid")
    add("--classes", nargs="+", help="names or numbers (default: all, at most the first 16)")
    add("--per-class", type=number(int, 1), default=8, help="samples of each class, a row of the grid")
    add("--seed", type=int, default=0, help="of the noise")
    add("--batch-size", type=number(int, 1), default=128, help="samples made at once; does not change them")
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="where the model runs")
    add("--tile", type=number(int, 1), default=32, help="least side of an image in the grid")
    add("--npz", help="also write images (n, h, w, c) uint8 and labels (n,) to this .npz file")
    add("--png-folder", help="also write every image as a PNG file here, a sub-folder for each class")
    add_sampling_options(parser)
    return parser


def write_images(images: Tensor, labels: Sequence[int], classes: Sequence[str], folder: Path) -> None:
    """Write `folder/CLASS/00000.png` and so on; images (n, c, h, w) in [-1, 1]."""
    for i, (pixels, label) in enumerate(zip(to_uint8(images), labels, strict=True)):
        target = folder / classes[label].replace("/", "_")
        target.mkdir(parents=True, exist_ok=True)
        array = pixels.permute(1, 2, 0).numpy()
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(target / f"{i:05d}.png")


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    try:
        args = build_parser().parse(sys.argv[1:] if arguments is None else arguments)
        out = Path(args.out)
        if out.suffix != ".png":
            raise ConfigError(
                f"out: expected the name of a .png file, got {args.out}; single images go to --png-folder"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        sampler = Sampler(args.model, SamplingOptions.from_args(args), args.device)
        numbers = class_numbers(args.classes, sampler.classes)[: None if args.classes else 16]
        labels = [number for number in numbers for _ in range(args.per_class)]
        images, calls = sampler.draw_batches(labels, args.seed, args.batch_size, "sampling")
        names = [sampler.classes[number] for number in numbers]
        image_grid(images, args.per_class, row_labels=names, tile=args.tile).save(out, optimize=True)
        about = {**sampler.describe(), "nfe": calls, "seed": args.seed, "model": args.model, "classes": names,
                 "per_class": args.per_class}  # fmt: skip
        write_atomically(out.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())
        if args.npz:
            import numpy as np

            np.savez_compressed(args.npz, images=to_uint8(images).permute(0, 2, 3, 1).numpy(), labels=labels)
        if args.png_folder:
            write_images(images, labels, sampler.classes, Path(args.png_folder))
    except (WavemambaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {len(labels)} samples of {len(names)} classes, {calls} function evaluations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
