"""What a DiMSUM model is made of, and what differs from block to block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from wavemamba.blocks import subband_scan
from wavemamba.blocks.fusion import FUSION_MODES, FusionMode
from wavemamba.errors import ConfigError
from wavemamba.layers.mixers.mamba1 import CONDITIONINGS, Conditioning
from wavemamba.names import check_names
from wavemamba.ops.haar import LAYOUTS, Layout
from wavemamba.scans import ScanOrder, scan_order
from wavemamba.transforms import frequency_transform

PATH_FAMILIES = ("none", "sweep", "zigma", "jpeg")
ATTENTION_SHARING = ("shared", "independent")
NORM_NAMES = ("rms", "layer")


@dataclass(frozen=True, kw_only=True)
class DiMSUMConfig:
    """Options of a DiMSUM model; checks itself.

    Raises:
        ConfigError: a value is out of its range.
    """

    img_size: tuple[int, int] = (32, 32)
    """(h, w) of the image or latent, in pixels, multiples of `patch_size`; other sizes run too."""
    in_chans: int = 4
    """Channels of the image or latent."""
    out_chans: int | None = None
    """Channels of the output; None: `in_chans`."""
    patch_size: int = 2
    """Side of a patch, in pixels."""
    dim: int = 1024
    """Width C of a token."""
    depth: int = 16
    """DiMSUM blocks."""
    num_classes: int = 1000
    """Classes, without the null class; 0: an unconditional model."""
    class_dropout: float = 0.15
    """Probability in [0, 1) that training replaces a label by the null class; 0: no null class."""
    drop_path_rate: float = 0.0
    """Probability in [0, 1) of dropping a block's output, rising linearly over the depth up to this value."""
    attention_every: int = 4
    """A transformer block runs after every so many blocks; 0: never."""
    attention_sharing: str = "shared"
    """"shared": one transformer block for all its places; "independent": one for each place."""
    attention_heads: int = 16
    """Heads of the transformer block."""
    fusion: FusionMode = "cross"
    """How the two branches are fused."""
    fusion_heads: int = 8
    """Heads of the fusion."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLPs as a multiple of C."""
    gated_mlp: bool = True
    """Gated MLPs."""
    norm: str = "rms"
    """"rms" or "layer"."""
    final_norm: bool = False
    """The output layer reads norm(residual + hidden) instead of hidden alone."""
    transform: str = "haar"
    """Frequency transform: "haar", "dct" or a wavelet of PyWavelets."""
    levels: int = 2
    """How often every band is split."""
    layout: Layout = "channel"
    """Where the subbands go: "channel" (the released weights), "interleaved" or "mosaic" (the paper's figure 2)."""
    scan_path: str = "none"
    """Path family walked inside every mixer, block i along path i % 8: "none", "sweep", "zigma" or "jpeg"."""
    snake: bool = False
    """Spatial scans run every second row backwards."""
    bidirectional: bool = False
    """Mixers scan backwards too."""
    conditioning: Conditioning = "none"
    """How the condition enters the mixers, beside adaLN: "none" or "conv_state"."""
    d_state: int = 16
    """State size N of the mixers."""

    def __post_init__(self) -> None:
        """Check every value."""
        size: Any = self.img_size
        size = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) else size
        object.__setattr__(self, "img_size", size)
        at_least_one = ("in_chans", "patch_size", "dim", "depth", "attention_heads", "fusion_heads", "d_state")
        for name in at_least_one:
            _expect(name, getattr(self, name), lambda v: _is_int(v) and v >= 1, "an int >= 1")
        for name in ("num_classes", "attention_every", "levels"):
            _expect(name, getattr(self, name), lambda v: _is_int(v) and v >= 0, "an int >= 0")
        _expect("out_chans", self.out_chans, lambda v: v is None or (_is_int(v) and v >= 1), "None or an int >= 1")
        for name in ("class_dropout", "drop_path_rate"):
            _expect(name, getattr(self, name), lambda v: 0 <= v < 1, "a probability in [0, 1)")
        for name in ("gated_mlp", "final_norm", "snake", "bidirectional"):
            _expect(name, getattr(self, name), lambda v: isinstance(v, bool), "True or False")
        choices: dict[str, Collection[str]] = {
            "attention_sharing": ATTENTION_SHARING,
            "fusion": FUSION_MODES,
            "norm": NORM_NAMES,
            "layout": LAYOUTS,
            "scan_path": PATH_FAMILIES,
            "conditioning": CONDITIONINGS,
        }
        for name, values in choices.items():
            _expect(name, getattr(self, name), lambda v, values=values: v in values, f"one of {', '.join(values)}")
        _expect("dim", self.dim, lambda v: v % 4 == 0, "a multiple of 4")
        fits = f"a number that gives a hidden width >= 1 from dim = {self.dim}"
        _expect("mlp_ratio", self.mlp_ratio, lambda v: 1 <= v * self.dim < math.inf, fits)
        if self.attention_every:
            fits = f"a divisor of dim = {self.dim}"
            _expect("attention_heads", self.attention_heads, lambda v: self.dim % v == 0, fits)
        if self.fusion != "linear":
            fits = f"a divisor of dim / 2 = {self.dim // 2}"
            _expect("fusion_heads", self.fusion_heads, lambda v: self.dim // 2 % v == 0, fits)
        _expect(
            "img_size",
            size,
            lambda v: (
                isinstance(v, tuple)
                and len(v) == 2
                and all(_is_int(s) and s >= 1 and s % self.patch_size == 0 for s in v)
            ),
            f"an int or a pair, multiples of patch_size = {self.patch_size}",
        )
        frequency_transform(self.transform, self.levels)

    @property
    def grid_size(self) -> tuple[int, int]:
        """(H, W), the token grid of an image of `img_size`."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "img_size": list(self.img_size)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiMSUMConfig:
        """Build from plain values; an unknown name is a `ConfigError` that names the nearest one."""
        check_names(values, [field.name for field in dataclasses.fields(cls)])
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _expect(name: str, value: Any, fits: Any, expected: str) -> None:
    try:
        good = bool(fits(value))
    except TypeError:
        good = False
    if not good:
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")


@dataclass(frozen=True)
class BlockSpec:
    """What is particular to one block of the depth."""

    spatial_scan: ScanOrder
    frequency_scan: ScanOrder
    drop_path: float
    attention: int | None
    """Which transformer block runs after this block, if any."""


def layer_plan(config: DiMSUMConfig) -> tuple[BlockSpec, ...]:
    """Say what each block of the depth does.

    Block i scans the image column-major where `i % 4 >= 2`, backwards where i is odd, and the subbands column-major
    where i is odd. With a path family or two directions it does not alternate: block i walks path `i % 8` of the
    family, or every block scans the image row-major both ways. `snake` turns every second row of both sequences.

    Source: how the released DiMSUM weights were trained, and what its variants compute.
    """
    transform = frequency_transform(config.transform, config.levels)
    alternates = config.scan_path == "none" and not config.bidirectional
    places = attention_places(config)
    specs = []
    for i in range(config.depth):
        odd = alternates and i % 2 == 1
        spatial = scan_order("snake" if config.snake else "raster", transpose=alternates and i % 4 >= 2, reverse=odd)
        frequency = subband_scan(transform, transpose=odd)
        if config.snake:
            frequency = frequency.then(scan_order("snake"))
        if config.scan_path != "none":
            path = scan_order(config.scan_path, path=i % 8)
            spatial, frequency = spatial.then(path), frequency.then(path)
        # Block i adds what block i - 1 returned, so the drop rate is that of the block before.
        rate = config.drop_path_rate * max(i - 1, 0) / max(config.depth - 1, 1)
        specs.append(BlockSpec(spatial, frequency, rate, places.get(i)))
    return tuple(specs)


def attention_places(config: DiMSUMConfig) -> dict[int, int]:
    """Which transformer block runs after which DiMSUM block: block index -> transformer index."""
    every = config.attention_every
    after = [i for i in range(config.depth) if every and (i + 1) % every == 0]
    independent = config.attention_sharing == "independent"
    return {block: index if independent else 0 for index, block in enumerate(after)}
