"""Encode pictures once into latent shards, which training then reads in their place.

    python -m wavemamba.encode --data IMAGES --out LATENTS --autoencoder stabilityai/sd-vae-ft-ema --mirror
    python -m wavemamba.train --recipe imagenet256.yaml --data LATENTS --out runs/imagenet256

Start the same command again after a crash or a kill: shards that are there and match their checksum are kept, and the
next one is encoded. Each shard is written aside, flushed, renamed and read back. Shards hold mean and standard
deviation of the autoencoder's posterior, scaled; training draws from it anew every time.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from wavemamba.commands.parser import RecipeParser, device, number, parse_overrides
from wavemamba.commands.running import exit_status
from wavemamba.data import LOOKS, encode_source, open_source
from wavemamba.diffusion import Autoencoder
from wavemamba.sampling.precision import named_dtype

DTYPES = ("bfloat16", "float16", "float32")
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def build_parser() -> RecipeParser:
    """The options; their names are also what a recipe may hold."""
    flag, count = argparse.BooleanOptionalAction, number(int, 1)
    parser = RecipeParser(description=__doc__)
    add = parser.add_argument
    add("--data", required=True, help="folder of images (class = sub-folder), tar shards, or KIND:WHAT")
    add("--data-options", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="such as labels=none")
    look = "look at the data first; all: every image"
    add("--verify-data", choices=LOOKS, default="auto", help=look)
    add("--skip-unreadable", action=flag, default=False, help="leave out images that cannot be read")
    add("--out", required=True, help="folder for the shards")
    add("--autoencoder", required=True, help="folder or hub id of a diffusers AutoencoderKL")
    add("--image-size", type=count, default=256, help="side that images are scaled and cropped to")
    add("--mirror", action=flag, default=False, help="also encode every image mirrored")
    add("--shard-size", type=count, default=4096, help="images a shard; what a kill can cost")
    add("--batch-size", type=count, default=32, help="images encoded at once")
    add("--dtype", choices=DTYPES, default="float32", help="of the stored numbers")
    add("--workers", type=number(int, 0), default=0, help="processes that read images")
    where = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=device, default=where, help="where the autoencoder runs")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return exit_status(lambda: _encode(sys.argv[1:] if arguments is None else arguments))


def _encode(arguments: Sequence[str]) -> None:
    args = build_parser().parse(arguments)
    autoencoder = Autoencoder.from_pretrained(args.autoencoder, device=args.device)
    # Latents are made once: pictures are resized in one step, not by the faster way that training takes.
    look = {"verify": args.verify_data, "skip_unreadable": args.skip_unreadable}
    options = {"size": args.image_size, "reduce": math.inf, **look}
    source = open_source(args.data, **{**options, **parse_overrides(args.data_options)})
    print(source.summary())
    config = autoencoder.model.config
    about = {name: getattr(config, name, None) for name in SCALING}
    about |= {"autoencoder": str(args.autoencoder), "image_size": args.image_size}
    about["shape"] = autoencoder.latent_shape(*source.shape[1:])
    with tqdm(total=source.num_examples, unit="image", disable=not sys.stderr.isatty()) as bar:
        encoded = encode_source(
            source,
            args.out,
            autoencoder.posterior,
            about,
            mirror=args.mirror,
            dtype=named_dtype(args.dtype),
            shard_size=args.shard_size,
            batch_size=args.batch_size,
            workers=args.workers,
            progress=bar.update,
        )
    count, classes = source.num_examples, len(source.classes)
    print(f"{Path(args.out)}: {count} images of {classes} classes, {encoded} shards encoded now")
