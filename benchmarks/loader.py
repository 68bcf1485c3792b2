"""Pictures a second of the image folder beside torchvision's ImageFolder with Resize and CenterCrop, in one run.

python benchmarks/loader.py
python benchmarks/loader.py --workers 0 4 --pictures 512
python benchmarks/loader.py --look            what it costs to look at a file before the first step

The pictures are 1200 x 900 JPEGs cut from scikit-learn's photographs; both sides make RGB tensors of 256 x 256. Before
anything is timed, ours has to be within 40 dB PSNR of the bicubic in one step. torchvision resizes bilinearly unless
told otherwise, hence both of its ways are timed. What is timed is reading: the loader's workers are started before.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import report
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from wavemamba.data import Batches, ImageFolder, PictureView

LEAST_PSNR = 40.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--look", action="store_true", help="time the look at the files instead")
    parser.add_argument("--name", help="of the JSON under benchmarks/results (cpu-loader, cpu-look)")
    options = parser.parse_args()
    options.name = options.name or ("cpu-look" if options.look else "cpu-loader")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), options.pictures)
        (measure_looks if options.look else measure)(folder, options)


def measure(folder: str, options: argparse.Namespace) -> None:
    ours = ImageFolder(folder, PictureView(size=options.size))
    exact = ImageFolder(folder, PictureView(size=options.size, reduce=float("inf")))
    least = min(psnr(ours.example(i)[0], exact.example(i)[0]) for i in range(0, len(ours), max(1, len(ours) // 16)))
    if least < LEAST_PSNR:
        raise SystemExit(f"expected {LEAST_PSNR} dB beside the bicubic in one step, got {least:.1f}; not timed")
    steps = options.pictures // options.batch_size
    cases = {}
    for workers in options.workers:
        cases["wavemamba", workers] = partial(wavemamba_batches, ours, options.batch_size, steps, workers)
        cases["wavemamba, one step", workers] = partial(wavemamba_batches, exact, options.batch_size, steps, workers)
        for way in ("bilinear", "bicubic"):
            there = torchvision_folder(folder, options.size, way)
            name = f"torchvision, {way}"
            cases[name, workers] = partial(torchvision_batches, there, options.batch_size, workers)
    speeds: dict[Any, list[float]] = {name: [] for name in cases}
    order, generator = list(cases), random.Random(0)
    for _ in range(options.rounds):
        generator.shuffle(order)
        for name in order:
            batches = iter(cases[name]())
            next(batches)  # the workers are up
            start = time.perf_counter()
            count = sum(len(x) for x, _ in batches)
            speeds[name].append(count / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    rows = [
        {
            "reader": name,
            "workers": workers,
            "pictures/s": medians[name, workers],
            "against torchvision, bilinear": medians[name, workers] / medians["torchvision, bilinear", workers],
        }
        for name, workers in cases
    ]
    settings = {key: value for key, value in vars(options).items() if key != "name"}
    report(options.name, rows, least_psnr=least, source="1200 x 900 JPEG, quality 90", **settings)


def measure_looks(folder: str, options: argparse.Namespace) -> None:
    """Time and processor time a file of reading it, and of a look at its header and end."""
    source = ImageFolder(folder, PictureView(size=options.size))
    everything = range(len(source))
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        for limit in (0, len(source)):
            source.read_up_to = limit
            start = time.perf_counter(), time.process_time()
            look = source.look(everything)
            spent = time.perf_counter() - start[0], time.process_time() - start[1]
            if look.faults:
                raise SystemExit(f"expected pictures that can be read, got {look.faults}; not timed")
            found.setdefault(look.how, []).append(spent)
    rows = [{"look": how, **milliseconds(times, len(source))} for how, times in found.items()]
    report(options.name, rows, source="1200 x 900 JPEG, quality 90", pictures=len(source), rounds=options.rounds)


def milliseconds(times: list[tuple[float, float]], count: int) -> dict[str, float]:
    wall, processor = (statistics.median(kind) / count * 1e3 for kind in zip(*times, strict=True))
    return {"ms a file": wall, "processor ms a file": processor}


def wavemamba_batches(source: ImageFolder, batch_size: int, steps: int, workers: int) -> Batches:
    return Batches(source, seed=0, batch_size=batch_size, start=0, stop=steps, workers=workers)


def torchvision_folder(folder: str, size: int, way: str) -> datasets.ImageFolder:
    resize = transforms.Resize(size, interpolation=transforms.InterpolationMode(way))
    return datasets.ImageFolder(
        folder, transforms.Compose([resize, transforms.CenterCrop(size), transforms.ToTensor()])
    )


def torchvision_batches(data: datasets.ImageFolder, batch_size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    return iter(DataLoader(data, batch_size, shuffle=True, num_workers=workers, drop_last=True))


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10(((a - b) / 2).square().mean()))


def write_pictures(folder: Path, count: int) -> None:
    photographs = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    generator = random.Random(0)
    for i in range(count):
        (folder / str(i % 2)).mkdir(exist_ok=True)
        whole = photographs[i % 2]
        height = 0.8 * whole.height
        width = 4 / 3 * height
        left = generator.uniform(0, whole.width - width)
        top = generator.uniform(0, whole.height - height)
        box = (left, top, left + width, top + height)
        whole.resize((1200, 900), Image.Resampling.BICUBIC, box=box).save(folder / str(i % 2) / f"{i}.jpg", quality=90)


if __name__ == "__main__":
    main()
