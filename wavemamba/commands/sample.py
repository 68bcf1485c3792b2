"""Draw pictures from a saved model.

    python -m wavemamba.sample --model runs/digits/model --out samples.png
    python -m wavemamba.sample --model runs/digits/model --classes 3 8 --per-class 16 --solver euler --steps 25
    python -m wavemamba.sample --model runs/digits/model --diffusion sigma --steps 100 --size 16

Writes one labelled grid, a row for each class, and beside it NAME.json with everything that moves the result; with
--npz and --png-folder also the single images.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from wavemamba.commands.parser import RecipeParser, device, number
from wavemamba.commands.running import exit_status
from wavemamba.commands.sampling_options import add_sampling_options, sampler_from, settings_from
from wavemamba.errors import ConfigError
from wavemamba.files import printable, write_atomically, writing
from wavemamba.sampling import Pictures, to_uint8
from wavemamba.seeds import derive_seed

MOST_CLASSES = 16


def build_parser() -> RecipeParser:
    """The options; their names are also what a recipe may hold."""
    parser = RecipeParser(description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="folder or hub id with model.safetensors and config.json")
    add("--out", default="samples.png", help="the labelled grid")
    add("--classes", nargs="+", help=f"names or ids (default: all, at most the first {MOST_CLASSES})")
    add("--per-class", type=number(int, 1), default=8, help="samples of each class, a row of the grid")
    add("--size", type=number(int, 1), nargs="+", metavar="PIXELS",
        help="side, or height and width, of the pictures (default: the model's)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the noise")
    add("--batch-size", type=number(int, 1), default=128, help="samples made at once; does not change them")
    where = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=device, default=where, help="where the model runs")
    add("--tile", type=number(int, 1), default=32, help="least side of an image in the grid")
    add("--npz", help="also write images (n, h, w, c) uint8 and labels (n,) to this .npz file")
    add("--png-folder", help="also write every image as a PNG file here, a sub-folder for each class")
    add_sampling_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return exit_status(lambda: _sample(sys.argv[1:] if arguments is None else arguments))


def _sample(arguments: Sequence[str]) -> None:
    args = build_parser().parse(arguments)
    importlib.import_module("PIL.Image")  # told to be missing now, not after hours of sampling
    out, settings = Path(args.out), settings_from(args)
    if out.suffix != ".png":
        raise ConfigError(f"out: expected the name of a .png file, got {args.out}; single images go to --png-folder")
    if args.size and len(args.size) > 2:
        raise ConfigError(f"size: expected a side, or a height and a width, got {args.size}")
    sampler = sampler_from(args, args.model, args.device)
    wanted = args.classes or sampler.class_names[:MOST_CLASSES]
    labels = [number for number in sampler.class_ids(wanted) for _ in range(args.per_class)]
    if args.classes and not labels:
        raise ConfigError(f"classes: expected none, as {args.model} knows no classes, got {args.classes}")
    pictures = sampler(
        labels or None,
        [derive_seed(args.seed, "sample", i) for i in range(len(labels) or args.per_class)],
        settings=settings,
        size=tuple(args.size * 2)[:2] if args.size else None,
        batch_size=args.batch_size,
    )
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures.grid(args.per_class, tile=args.tile).save(out, optimize=True)
        record = {**pictures.record, "seed": args.seed}
        write_atomically(out.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
    if args.npz:
        buffer = io.BytesIO()
        pixels = to_uint8(pictures.images).permute(0, 2, 3, 1).numpy()
        np.savez_compressed(buffer, images=pixels, labels=np.asarray(labels, dtype=np.int64))
        with writing(Path(args.npz).parent):
            write_atomically(args.npz, buffer.getvalue())
    if args.png_folder:
        _write_images(pictures, Path(args.png_folder))
    classes = f" of {len(dict.fromkeys(labels))} classes" if labels else ""
    calls = pictures.record["evaluations"]
    how = f" in {sampler.precision}" if sampler.precision.chosen_here else ""
    print(printable(f"{out}: {len(pictures)} samples{classes}, {calls} function evaluations{how}"))


def _write_images(pictures: Pictures, folder: Path) -> None:
    """Write `folder/CLASS/00000.png` and so on; without classes, `folder/00000.png`."""
    with writing(folder):
        for i, picture in enumerate(pictures.to_pil()):
            name = pictures.class_names[i].replace("/", "_").lstrip(".") if pictures.class_names else ""
            target = folder / name
            target.mkdir(parents=True, exist_ok=True)
            picture.save(target / f"{i:05d}.png")
