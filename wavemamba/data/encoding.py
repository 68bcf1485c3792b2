"""A source of pictures encoded once into latent shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wavemamba.data.base import ExampleSource, Source
from wavemamba.data.latent_writer import LatentShardWriter
from wavemamba.data.stream import collate
from wavemamba.errors import ConfigError
from wavemamba.locks import FolderLock

Posterior = Callable[[Tensor], tuple[Tensor, Tensor]]
"""`posterior(pictures (b, c, h, w)) -> (mean, std)`, both (b, latent channels, h', w')."""


def encode_source(
    source: Source,
    out: str | Path,
    posterior: Posterior,
    about: dict[str, Any],
    *,
    mirror: bool = False,
    dtype: torch.dtype = torch.float32,
    shard_size: int = 4096,
    batch_size: int = 32,
    workers: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Write the latents of every picture of a source, in its order, as shards that `LatentShards` reads.

    Started again it keeps the shards that are there and match their checksum. One job at a time writes in a folder.

    Args:
        source: pictures, not augmented.
        out: folder of the shards; made if needed.
        posterior: the encoder; its results are moved to the CPU.
        about: what the latents depend on beside the pictures, plain JSON values with at least `shape` (c, h, w).
        mirror: also encode every picture mirrored.
        dtype: of the stored numbers.
        shard_size: pictures in a shard; what a kill can cost.
        batch_size: pictures encoded at once.
        workers: processes that read pictures.
        progress: called with the number of pictures that are done more.

    Returns:
        Shards that were encoded now.

    Raises:
        ConfigError: a streamed source, or the folder is in use.
        DataError: a picture cannot be read, the folder holds other latents, or a latent is not finite.
    """
    if not isinstance(source, ExampleSource):
        raise ConfigError("source: expected pictures on this disk, got a stream; download the data first")
    description = {
        **about,
        "images": source.fingerprint(),
        "mirrored": mirror,
        "dtype": str(dtype).removeprefix("torch."),
    }
    with FolderLock(out):
        writer = LatentShardWriter(out, description, total=len(source), shard_size=shard_size)
        missing = list(writer.missing())
        progress(len(source) - sum(len(indices) for _, indices in missing))
        for number, indices in missing:
            loader: DataLoader[tuple[Tensor, int]] = DataLoader(
                _Some(source, indices),
                batch_size,
                num_workers=workers,
                collate_fn=collate,
                # The loader draws a base seed for its workers: not from the caller's generator.
                generator=torch.Generator(device="cpu"),
            )
            parts: dict[str, list[Tensor]] = {}
            with torch.device("cpu"):
                batches = iter(loader)
            for pixels, labels in batches:
                views = {"": pixels, "_mirrored": pixels.flip(-1)} if mirror else {"": pixels}
                for suffix, view in views.items():
                    mean, std = posterior(view)
                    parts.setdefault(f"mean{suffix}", []).append(mean.to("cpu", dtype))
                    parts.setdefault(f"std{suffix}", []).append(std.to("cpu", dtype))
                parts.setdefault("label", []).append(labels)
                progress(len(labels))
            writer.write(number, {name: torch.cat(tensors) for name, tensors in parts.items()})
        writer.finish(source.classes)
    return len(missing)


class _Some(Dataset[tuple[Tensor, int]]):
    """Some pictures of a source, in order."""

    def __init__(self, source: ExampleSource, indices: range) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.source.example(self.indices[i])
