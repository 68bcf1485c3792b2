"""What differs from block to block over the depth of a DiMSUM model."""

from __future__ import annotations

from dataclasses import dataclass

from wavemamba.blocks import subband_scan
from wavemamba.models.dimsum.config import DiMSUMConfig
from wavemamba.scans import ScanOrder, scan_order
from wavemamba.transforms import frequency_transform


@dataclass(frozen=True)
class BlockSpec:
    """What is particular to one block of the depth."""

    index: int
    """Its place, from 0."""
    spatial_scan: ScanOrder
    frequency_scan: ScanOrder
    drop_path: float
    attention: int | None
    """Which transformer block runs after this block, if any."""


def layer_plan(config: DiMSUMConfig) -> tuple[BlockSpec, ...]:
    """Say what each block of the depth does.

    Block i scans the image column-major where `i % 4 >= 2`, backwards where i is odd, and the subbands column-major
    where i is odd. With a path family or two directions it does not alternate: block i walks path `i % 8` of the
    family, or every block scans the image row-major both ways. `spatial_alternation` and `frequency_alternation` say
    otherwise. `snake` turns every second row of both sequences.

    Source: how the released DiMSUM weights were trained, and what its variants compute.
    """
    alternates = config.scan_path == "none" and not config.bidirectional
    in_space = config.spatial_alternation or ("transpose_reverse" if alternates else "none")
    in_frequency = config.frequency_alternation or ("transpose" if alternates else "none")
    image = scan_order("snake" if config.snake else config.spatial_scan)
    if config.frequency_scan == "subband":
        bands = subband_scan(frequency_transform(config.transform, config.levels))
    else:
        bands = scan_order(config.frequency_scan)
    places = attention_places(config)
    specs = []
    for i in range(config.depth):
        spatial, frequency = _alternated(image, in_space, i), _alternated(bands, in_frequency, i)
        if config.snake:
            frequency = frequency.then(scan_order("snake"))
        if config.scan_path != "none":
            family = scan_order(config.scan_path, path=i % 8)
            spatial, frequency = spatial.then(family), frequency.then(family)
        # Block i adds what block i - 1 returned, so the drop rate is that of the block before.
        rate = config.drop_path_rate * max(i - 1, 0) / max(config.depth - 1, 1)
        specs.append(BlockSpec(i, spatial, frequency, rate, places.get(i)))
    return tuple(specs)


def _alternated(order: ScanOrder, alternation: str, index: int) -> ScanOrder:
    """The order of block number `index`."""
    odd, late = index % 2 == 1, index % 4 >= 2
    if (alternation == "transpose" and odd) or (alternation == "transpose_reverse" and late):
        order = order.transposed()
    return order.reversed() if odd and alternation in ("reverse", "transpose_reverse") else order


def attention_places(config: DiMSUMConfig) -> dict[int, int]:
    """Which transformer block runs after which DiMSUM block: block index -> transformer index."""
    every = config.attention_every
    after = [i for i in range(config.depth) if every and (i + 1) % every == 0]
    independent = config.attention_sharing == "independent"
    return {block: index if independent else 0 for index, block in enumerate(after)}
