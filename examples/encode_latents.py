"""Encode a folder of images once into latent shards, which training then reads instead of images.

    python examples/encode_latents.py --data IMAGES --out LATENTS --autoencoder stabilityai/sd-vae-ft-ema --mirror
    python examples/train_dimsum.py --recipe examples/recipes/imagenet256.yaml --data LATENTS --out runs/imagenet256

Start the same command again after a crash or a kill: shards that are there and match their checksum are kept, and the
next one is encoded. Each shard is written aside, flushed, renamed and read back. Shards hold mean and standard
deviation of the autoencoder's posterior, scaled; training draws from it anew every time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from wavemamba import WavemambaError
from wavemamba.commands.parser import RecipeParser, device, number
from wavemamba.data import ImageFolder, LatentShardWriter, PictureView
from wavemamba.diffusion import Autoencoder
from wavemamba.locks import FolderLock

DTYPES = {"float32": torch.float32, "float16": torch.float16}


class Images(Dataset):
    """Some images of a folder, in order."""

    def __init__(self, source: ImageFolder, indices: range) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.source.example(self.indices[i])


def build_parser() -> RecipeParser:
    """The options."""
    parser = RecipeParser(description=__doc__)
    add = parser.add_argument
    add("--data", required=True, help="folder of images, class = sub-folder")
    add("--out", required=True, help="folder for the shards")
    add("--autoencoder", required=True, help="folder or hub id of a diffusers AutoencoderKL")
    add("--image-size", type=number(int, 1), default=256, help="side that images are scaled and cropped to")
    add("--mirror", action=argparse.BooleanOptionalAction, default=False, help="also encode every image mirrored")
    add("--shard-size", type=number(int, 1), default=4096, help="images a shard; what a kill can cost")
    add("--batch-size", type=number(int, 1), default=32, help="images encoded at once")
    add("--dtype", choices=sorted(DTYPES), default="float32", help="of the stored numbers")
    add("--workers", type=number(int, 0), default=0, help="processes that read images")
    add(
        "--device",
        type=device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the autoencoder runs",
    )
    return parser


def encode(images: DataLoader, autoencoder: Autoencoder, mirror: bool, dtype: torch.dtype, bar: tqdm) -> dict:
    """The tensors of one shard."""
    parts: dict[str, list[Tensor]] = {}
    for pixels, labels in images:
        views = {"": pixels, "_mirrored": pixels.flip(-1)} if mirror else {"": pixels}
        for suffix, view in views.items():
            mean, std = autoencoder.posterior(view)
            parts.setdefault(f"mean{suffix}", []).append(mean.to("cpu", dtype))
            parts.setdefault(f"std{suffix}", []).append(std.to("cpu", dtype))
        parts.setdefault("label", []).append(labels)
        bar.update(len(labels))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    try:
        args = build_parser().parse(sys.argv[1:] if arguments is None else arguments)
        autoencoder = Autoencoder.from_pretrained(args.autoencoder, device=args.device)
        source = ImageFolder(args.data, PictureView(size=args.image_size, reduce=None))
        description = {
            "images": source.fingerprint(), "autoencoder": str(args.autoencoder), "image_size": args.image_size,
            "scaling_factor": autoencoder.scaling_factor, "shift_factor": autoencoder.shift_factor,
            "mirrored": args.mirror, "dtype": args.dtype,
            "shape": autoencoder.latent_shape(args.image_size, args.image_size),
        }  # fmt: skip
        with FolderLock(args.out):
            writer = LatentShardWriter(args.out, description, total=len(source), shard_size=args.shard_size)
            missing = list(writer.missing())
            done = len(source) - sum(len(indices) for _, indices in missing)
            with tqdm(total=len(source), initial=done, unit="image", disable=not sys.stderr.isatty()) as bar:
                for number, indices in missing:
                    loader = DataLoader(Images(source, indices), args.batch_size, num_workers=args.workers)
                    writer.write(number, encode(loader, autoencoder, args.mirror, DTYPES[args.dtype], bar))
            writer.finish(source.classes)
    except (WavemambaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{Path(args.out)}: {len(source)} images of {len(source.classes)} classes, {len(missing)} shards encoded now")
    return 0


if __name__ == "__main__":
    sys.exit(main())
