"""FID, sFID, inception score, precision and recall of samples against reference images, by torch-fidelity.

    python examples/evaluate.py --model runs/in256/model --count 50000 --reference IMAGES --out scores.json
    torchrun --nproc-per-node 8 examples/evaluate.py --model M --reference VIRTUAL_imagenet256_labeled.npz --out s.json
    python examples/evaluate.py --samples FOLDER --reference IMAGES --inception weights.pth --out scores.json

Samples are a folder, or drawn live from a model, shared among processes; with fixed-step solvers, dopri5 and bosh3 the
number of processes and the batch size change nothing but the time. The reference is a folder, or a statistics file
(.npz) that --save-reference or the ADM evaluation wrote. Beside the scores stands everything that moves them. Needs
`pip install torch-fidelity`.

sFID is the Fréchet distance of the first 7 channels of Inception's mixed_6/conv (17 x 17 each), as in the evaluation
of Dhariwal and Nichol, 2021; precision and recall use Inception's pooled features and 3 neighbours.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from wavemamba import BackendUnavailable, CheckpointError, ConfigError, WavemambaError
from wavemamba.commands.parser import RecipeParser, number
from wavemamba.commands.sampling_options import add_sampling_options, sampler_from, settings_from
from wavemamba.data import ImageFolder, PictureView
from wavemamba.errors import DataError
from wavemamba.files import write_atomically
from wavemamba.sampling import to_uint8
from wavemamba.seeds import derive_seed

Features = dict[str, Tensor]
PER_BATCH = ("seeds", "classes", "class_names", "evaluations")
LEAST = 10  # images a side: the inception score is a mean over ten parts


class Inception(nn.Module):
    """torch-fidelity's InceptionV3 with the weights of the original FID: pooled and spatial features, and logits.

    Args:
        weights: torch-fidelity's weight file; None: downloaded by it.
    """

    description = "torch-fidelity inception-v3-compat; 8-bit images, resized to 299 x 299 as TensorFlow 1 does"

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise BackendUnavailable(f"torch-fidelity is needed ({error}); pip install torch-fidelity") from error
        if weights is not None:
            try:  # torch-fidelity would unpickle anything: what passes here holds tensors only
                torch.load(weights, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, pickle.UnpicklingError) as error:
                raise CheckpointError(f"{weights}: expected Inception weights of torch-fidelity ({error})") from error
        names = ["2048", "logits_unbiased"]
        try:
            self.net = FeatureExtractorInceptionV3("inception-v3-compat", names, feature_extractor_weights_path=weights)
        except (OSError, RuntimeError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{weights or 'download'}: expected Inception weights of torch-fidelity ({error}); without a network, "
                "give its weight file with --inception"
            ) from error
        self.net.Mixed_6d.branch1x1.register_forward_hook(self._keep)
        self._spatial = torch.empty(0)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        # Channels last, the order in which published statistics files (mu_s, sigma_s) hold them.
        self._spatial = output[:, :7].permute(0, 2, 3, 1).flatten(1)

    def forward(self, images: Tensor) -> Features:
        """(n, 3, h, w) uint8 to `pool` (n, 2048), `spatial` (n, 2023) and `logits` (n, 1008)."""
        pool, logits = self.net(images)
        return {"pool": pool, "spatial": self._spatial, "logits": logits}


def build_parser() -> RecipeParser:
    """The options."""
    parser = RecipeParser(description=__doc__)
    add = parser.add_argument
    add("--samples", help="folder of images to judge")
    add("--model", help="or: folder of a saved model to sample from")
    add("--reference", required=True, help="folder of images, or statistics file (.npz)")
    add("--out", required=True, help="the scores, a JSON file")
    add("--count", type=number(int, LEAST), help="images to judge (default: all of a folder, 50000 of a model)")
    add(
        "--image-size",
        type=number(int, 1),
        default=256,
        help="side that images of folders are scaled and cropped to",
    )
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
        self.device = self.accelerator.device
        self.extractor = (Inception(args.inception) if extractor is None else extractor).to(self.device).eval()

    @torch.no_grad()
    def features(self, batches: Iterator[tuple[list[int], Tensor]], count: int, title: str) -> Features:
        """Features of all images in the order of their numbers, from the (numbers, images) of every process."""
        numbers: list[int] = []
        found: dict[str, list[Tensor]] = {}
        bar = tqdm(
            total=count,
            desc=title,
            unit="image",
            disable=not (self.accelerator.is_main_process and sys.stderr.isatty()),
        )
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
        bar.close()
        own = {name: torch.cat(parts) for name, parts in found.items()}
        everyone = gather_object([(numbers, own)])
        order = torch.tensor([number for part, _ in everyone for number in part]).argsort()
        return {name: torch.cat([part[name] for _, part in everyone if part])[order] for name in everyone[0][1]}

    def mine(self, count: int) -> list[list[int]]:
        """The numbers of this process's images, in batches."""
        numbers = range(self.accelerator.process_index, count, self.accelerator.num_processes)
        return [list(numbers[i : i + self.args.batch_size]) for i in range(0, len(numbers), self.args.batch_size)]

    def of_folder(self, folder: str, count: int | None, title: str) -> tuple[Features, dict]:
        """Features of the images of a folder, and what they depend on."""
        source = ImageFolder(folder, PictureView(size=self.args.image_size, reduce=math.inf), labels="none")
        total = len(source) if count is None else count
        least = max(LEAST, total, self.accelerator.num_processes)
        if len(source) < least or total < LEAST:
            raise DataError(f"{folder}: expected at least {least} images, got {min(total, len(source))}")
        batches = ((some, torch.stack([source.example(i)[0] for i in some])) for some in self.mine(total))
        resize = f"PIL bicubic, antialiased, centre crop to {self.args.image_size}"
        return self.features(batches, total, title), {"folder": folder, "count": total, "resize": resize}

    def of_model(self, title: str) -> tuple[Features, dict]:
        """Features of samples, the classes in turn, and what they depend on."""
        args, count = self.args, self.args.count or 50_000
        sampler, settings = sampler_from(args, args.model, self.device), settings_from(args)
        known = sampler.model.num_classes
        records: list[dict] = []

        def batches() -> Iterator[tuple[list[int], Tensor]]:
            for some in self.mine(count):
                seeds = [derive_seed(args.seed, "sample", i) for i in some]
                ids = [i % known for i in some] if known else None
                pictures = sampler(ids, seeds, settings=settings, batch_size=len(some), progress=False)
                records.append(pictures.record)
                yield some, pictures.images

        found = self.features(batches(), count, title)
        about = {"model": args.model, "count": count, "seed": args.seed, "classes": "in turn", "resize": "none"}
        evaluations = sum(record["evaluations"] for record in records)
        shared = {name: value for name, value in records[0].items() if name not in PER_BATCH} if records else {}
        return found, {**shared, **about, "nfe": evaluations / max(1, len(records))}

    def of_reference(self) -> tuple[dict[str, np.ndarray], Tensor | None, dict]:
        """Statistics, pooled features where there are any, and where they come from."""
        path = Path(self.args.reference)
        if path.suffix != ".npz":
            found, about = self.of_folder(str(path), None, "reference")
            return statistics(found), found["pool"], about
        try:
            with np.load(path, allow_pickle=False) as file:
                stats = {name: np.asarray(file[name], dtype=np.float64) for name in ("mu", "sigma", "mu_s", "sigma_s")}
                pool = torch.from_numpy(file["pool"]) if "pool" in file else None
                images = file["arr_0"] if pool is None and "arr_0" in file else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: expected mu, sigma, mu_s and sigma_s in an .npz file ({error})") from error
        if images is not None:  # an ADM reference batch: some of its images come with the statistics of all
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
            batches = ((some, pixels[some] / 127.5 - 1) for some in self.mine(len(pixels)))
            pool = self.features(batches, len(pixels), "reference")["pool"]
        return stats, pool, {"statistics": str(path), "features": 0 if pool is None else len(pool)}

    def scores(self) -> dict:
        """The scores and everything that moves them."""
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
        from torch_fidelity.metric_isc import isc_features_to_metric
        from torch_fidelity.metric_prc import prc_features_to_metric

        stats, pool, reference = self.of_reference()
        found, samples = (self.of_folder(self.args.samples, self.args.count, "samples") if self.args.samples
                          else self.of_model("samples"))  # fmt: skip
        own = statistics(found)
        for name, values in own.items():
            if values.shape != stats[name].shape:
                raise DataError(
                    f"{self.args.reference}: expected {name} of shape {values.shape}, as these features have, got "
                    f"{stats[name].shape}; make the file with --save-reference"
                )

        def frechet(mean: str, cov: str) -> float:
            pair = [{"mu": s[mean], "sigma": s[cov]} for s in (own, stats)]
            return fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID]

        scores = {"fid": frechet("mu", "sigma"), "sfid": frechet("mu_s", "sigma_s"),
                  **isc_features_to_metric(found["logits"], splits=10, shuffle=True, rng_seed=2020)}  # fmt: skip
        if pool is not None:
            k, n = 3, 10_000
            scores |= prc_features_to_metric(
                found["pool"][:n], pool[:n], prc_neighborhood=k, verbose=False, save_cpu_ram=True
            )
            scores.pop("f_score")
            scores["precision_recall"] = {
                "neighbours": k,
                "samples": min(n, len(found["pool"])),
                "reference": min(n, len(pool)),
            }
        if self.args.save_reference and self.accelerator.is_main_process:
            buffer = io.BytesIO()
            np.savez(buffer, **stats, **({} if pool is None else {"pool": pool.numpy()}))
            write_atomically(self.args.save_reference, buffer.getvalue())
        return {**scores, "samples": samples, "reference": reference, "features": self.extractor.description,
                "inception_score_splits": 10, "torch": torch.__version__, "device": str(self.device)}  # fmt: skip


def statistics(found: Features) -> dict[str, np.ndarray]:
    """Mean and covariance of pooled and spatial features, under the names of the ADM evaluation's files."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    pool, spatial = (fid_features_to_statistics(found[name].double()) for name in ("pool", "spatial"))
    return {"mu": pool["mu"], "sigma": pool["sigma"], "mu_s": spatial["mu"], "sigma_s": spatial["sigma"]}


def main(arguments: list[str] | None = None, extractor: nn.Module | None = None) -> int:
    """Run the script, with other features than Inception's where `extractor` is given; returns its exit status."""
    try:
        args = build_parser().parse(sys.argv[1:] if arguments is None else arguments)
        for path in filter(None, (args.out, args.save_reference)):  # not only after hours of sampling
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        evaluation = Evaluation(args, extractor)
        scores = evaluation.scores()
        if evaluation.accelerator.is_main_process:
            write_atomically(args.out, (json.dumps(scores, indent=1) + "\n").encode())
            shown = ("fid", "sfid", "inception_score_mean", "precision", "recall")
            print(f"{args.out}: " + ", ".join(f"{name} {scores[name]:.4f}" for name in shown if name in scores))
        evaluation.accelerator.end_training()
    except (WavemambaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
