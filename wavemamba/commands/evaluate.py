"""FID, sFID, inception score, precision and recall of samples against reference images, by torch-fidelity.

    python -m wavemamba.evaluate --model runs/in256/model --count 50000 --reference IMAGES --out scores.json
    torchrun --nproc-per-node 8 -m wavemamba.evaluate --model M --reference VIRTUAL_imagenet256_labeled.npz --out s.json
    python -m wavemamba.evaluate --samples FOLDER --reference IMAGES --inception weights.pth --out scores.json

Samples are a folder, or drawn live from a model, shared among processes; the number of processes and the batch size
change nothing but the time. The reference is a folder, or a statistics file (.npz) that --save-reference or the ADM
evaluation wrote; images of folders are brought to the model's size. Beside the scores stands everything that moves
them. Needs `pip install 'wavemamba[train]'`.

sFID is the Fréchet distance of the first 7 channels of Inception's mixed_6/conv (17 x 17 each), as in the evaluation
of Dhariwal and Nichol, 2021; precision and recall use Inception's pooled features and 3 neighbours.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from wavemamba.commands.inception import (
    STATISTICS,
    Features,
    Inception,
    Statistics,
    fidelity_scores,
    statistics,
    too_few,
)
from wavemamba.commands.parser import RecipeParser, number
from wavemamba.commands.running import exit_status
from wavemamba.commands.sampling_options import add_sampling_options, sampler_from, settings_from
from wavemamba.data import ImageFolder, PictureView, without_faults
from wavemamba.errors import ConfigError, DataError
from wavemamba.files import printable, write_atomically, writing
from wavemamba.sampling import Sampler, to_uint8
from wavemamba.seeds import derive_seed
from wavemamba.training.looking import look_together

LEAST = 10  # images a side: the inception score is a mean over ten parts
AT_ONCE = 16  # batches that are drawn by one call of the sampler
Batches = Iterator[tuple[list[int], Tensor]]


def build_parser() -> RecipeParser:
    """The options."""
    parser = RecipeParser(description=__doc__)
    add = parser.add_argument
    add("--samples", help="folder of images to judge")
    add("--model", help="or: folder or hub id of a saved model to sample from")
    add("--reference", required=True, help="folder of images, or statistics file (.npz)")
    add("--out", required=True, help="the scores, a JSON file")
    add("--count", type=number(int, LEAST), help="images to judge (default: all of a folder, 50000 of a model)")
    add("--image-size", type=number(int, 1), help="side that images of folders get (default: the model's, or 256)")
    add("--batch-size", type=number(int, 1), default=64, help="images at once in one process")
    add("--seed", type=int, default=0, help="of the noise of a model's samples")
    add("--inception", help="file with torch-fidelity's Inception weights, where there is no network")
    add("--save-reference", help="write the reference's statistics and features to this .npz file")
    add_sampling_options(parser)
    return parser


class Evaluation:
    """Extracts features in all processes and judges them in each."""

    def __init__(self, args: argparse.Namespace, extractor: nn.Module | None) -> None:
        if (args.samples is None) == (args.model is None):
            raise ConfigError("expected either --samples FOLDER or --model FOLDER, got both or neither")
        self.args = args
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.main, self.device = self.accelerator.is_main_process, self.accelerator.device
        chosen = Inception(args.inception) if extractor is None else extractor
        self.extractor = chosen.to(self.device).eval()
        self.description = str(getattr(chosen, "description", type(chosen).__name__))
        self.sampler = sampler_from(args, args.model, self.device) if args.model else None
        self.size = self._size()
        self.warnings: list[str] = []

    def _size(self) -> tuple[int, int]:
        """(h, w) of both sides."""
        side = self.args.image_size
        if self.sampler is None:
            return (side or 256,) * 2
        _, height, width = self.sampler.latent_shape()
        if self.sampler.autoencoder is not None:
            factor = self.sampler.autoencoder.downsampling
            height, width = height * factor, width * factor
        if side is not None and (side, side) != (height, width):
            raise ConfigError(
                f"image size: expected {height} x {width}, what the model makes, got {side}; leave --image-size out"
            )
        return height, width

    @torch.no_grad()
    def features(self, batches: Batches, count: int, title: str) -> Features:
        """Features of all images in the order of their numbers, from the (numbers, images) of every process."""
        numbers: list[int] = []
        found: dict[str, list[Tensor]] = {}
        quiet = not (self.main and sys.stderr.isatty())
        with tqdm(total=count, desc=title, unit="image", disable=quiet) as bar:
            for which, images in batches:
                images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
                if images.shape[1] != 3:
                    raise ConfigError(
                        f"{title}: expected images of 1 or 3 channels, got {images.shape[1]}; a model of latents needs "
                        "--autoencoder"
                    )
                for name, values in self.extractor(to_uint8(images).to(self.device)).items():
                    found.setdefault(name, []).append(values.float().cpu())
                numbers += which
                bar.update(len(which) * self.accelerator.num_processes)
        own = {name: torch.cat(parts) for name, parts in found.items()}
        everyone = gather_object([(numbers, own)])
        order = torch.tensor([number for part, _ in everyone for number in part]).argsort()
        return {name: torch.cat([part[name] for _, part in everyone if part])[order] for name in everyone[0][1]}

    def mine(self, count: int) -> list[list[int]]:
        """The numbers of this process's images, in batches."""
        numbers = range(self.accelerator.process_index, count, self.accelerator.num_processes)
        return [list(numbers[i : i + self.args.batch_size]) for i in range(0, len(numbers), self.args.batch_size)]

    def of_folder(self, folder: str, count: int | None, title: str) -> tuple[Features, dict[str, Any]]:
        """Features of the images of a folder, and what they depend on."""
        source = ImageFolder(folder, PictureView(size=self.size, reduce=math.inf), labels="none")
        without_faults(source, look_together(source, thorough=False), skip_unreadable=False)
        total = len(source) if count is None else count
        least = max(LEAST, total, self.accelerator.num_processes)
        if len(source) < least or total < LEAST:
            raise DataError(f"{folder}: expected at least {least} images, got {min(total, len(source))}")
        batches = ((some, torch.stack([source.example(i)[0] for i in some])) for some in self.mine(total))
        resize = f"PIL bicubic, antialiased, centre crop to {self.size[0]} x {self.size[1]}"
        return self.features(batches, total, title), {"folder": folder, "count": total, "resize": resize}

    def of_model(self, sampler: Sampler, title: str) -> tuple[Features, dict[str, Any]]:
        """Features of samples, the classes in turn, and what they depend on."""
        args, count, settings = self.args, self.args.count or 50_000, settings_from(self.args)
        classes = int(sampler.described.num_classes)
        records: list[dict[str, Any]] = []

        def batches() -> Batches:
            mine = [number for some in self.mine(count) for number in some]
            for start in range(0, len(mine), AT_ONCE * args.batch_size):
                some = mine[start : start + AT_ONCE * args.batch_size]
                seeds = [derive_seed(args.seed, "sample", i) for i in some]
                ids = [i % classes for i in some] if classes else None
                drawn = sampler(ids, seeds, settings=settings, batch_size=args.batch_size, progress=False)
                records.append(drawn.record)
                for at in range(0, len(some), args.batch_size):
                    yield some[at : at + args.batch_size], drawn.images[at : at + args.batch_size]

        found = self.features(batches(), count, title)
        calls = sum(record["evaluations"] for record in records) / max(1, len(self.mine(count)))
        changing = ("seeds", "classes", "class_names", "evaluations")
        about = {name: value for name, value in records[0].items() if name not in changing}
        about |= {"count": count, "seed": args.seed, "classes": "in turn", "resize": "none", "nfe": calls}
        return found, about

    def of_reference(self) -> tuple[Statistics, Tensor | None, dict[str, Any]]:
        """Statistics, pooled features where there are any, and where they come from."""
        path = Path(self.args.reference)
        if path.suffix != ".npz":
            found, about = self.of_folder(str(path), None, "reference")
            self.check_counts({"reference images": about["count"]}, found)
            return statistics(found), found["pool"], about
        try:
            with np.load(path, allow_pickle=False) as file:
                stats = {name: np.asarray(file[name], dtype=np.float64) for name in STATISTICS}
                pool = torch.from_numpy(file["pool"]) if "pool" in file else None
                images = file["arr_0"] if pool is None and "arr_0" in file else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: expected mu, sigma, mu_s and sigma_s in an .npz file ({error})") from error
        if images is not None:  # an ADM reference batch: some of its images come with the statistics of all
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
            batches = ((some, pixels[some] / 127.5 - 1) for some in self.mine(len(pixels)))
            pool = self.features(batches, len(pixels), "reference")["pool"]
        return stats, pool, {"statistics": str(path), "features": 0 if pool is None else len(pool)}

    def check_counts(self, counts: dict[str, int], found: Features) -> None:
        """Say where there are too few images for what is computed."""
        self.warnings += too_few(counts, found)

    def scores(self) -> dict[str, Any]:
        """The scores and everything that moves them."""
        stats, pool, reference = self.of_reference()
        found, samples = (
            self.of_folder(self.args.samples, self.args.count, "samples")
            if self.sampler is None
            else self.of_model(self.sampler, "samples")
        )
        self.check_counts({"samples": samples["count"]}, found)
        own = statistics(found)
        for name, values in own.items():
            if values.shape != stats[name].shape:
                raise DataError(
                    f"{self.args.reference}: expected {name} of shape {values.shape}, as these features have, got "
                    f"{stats[name].shape}; make the file with --save-reference"
                )
        scores = fidelity_scores(found, own, stats, pool)
        if self.args.save_reference and self.main:
            buffer = io.BytesIO()
            arrays: dict[str, Any] = {**stats, **({} if pool is None else {"pool": pool.numpy()})}
            np.savez(buffer, **arrays)
            with writing(Path(self.args.save_reference).parent):
                write_atomically(self.args.save_reference, buffer.getvalue())
        return {
            **scores,
            "warnings": self.warnings,
            "samples": samples,
            "reference": reference,
            "features": self.description,
            "inception_score_splits": 10,
            "torch": torch.__version__,
            "device": str(self.device),
        }


def main(arguments: Sequence[str] | None = None, extractor: nn.Module | None = None) -> int:
    """Run the command, with other features than Inception's where `extractor` is given; returns its exit status."""
    return exit_status(lambda: _evaluate(sys.argv[1:] if arguments is None else arguments, extractor))


def _evaluate(arguments: Sequence[str], extractor: nn.Module | None) -> None:
    args = build_parser().parse(arguments)
    for path in filter(None, (args.out, args.save_reference)):  # not only after hours of sampling
        with writing(Path(path).parent):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    evaluation = Evaluation(args, extractor)
    scores = evaluation.scores()
    if evaluation.main:
        with writing(Path(args.out).parent):
            write_atomically(args.out, (json.dumps(scores, indent=1) + "\n").encode())
        for warning in scores["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)
        shown = ("fid", "sfid", "inception_score_mean", "precision", "recall")
        values = ", ".join(f"{name} {scores[name]:.4f}" for name in shown if name in scores)
        print(printable(f"{args.out}: {values}"))
    evaluation.accelerator.end_training()
