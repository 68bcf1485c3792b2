"""What a DiMSUM model is made of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from wavemamba.blocks.fusion import FUSION_MODES
from wavemamba.layers.mixers.mamba1 import CONDITIONINGS, Conditioning
from wavemamba.models.config import MOST, PatchConfig, expect, expect_whole
from wavemamba.models.part_registry import PART_KINDS, part_names
from wavemamba.names import choose
from wavemamba.ops.haar import LAYOUTS, Layout
from wavemamba.scans import list_scan_orders, scan_order
from wavemamba.transforms import frequency_transform

ATTENTION_SHARING = ("shared", "independent")


@dataclass(frozen=True, kw_only=True)
class DiMSUMConfig(PatchConfig):
    """Options of a DiMSUM model; checks itself.

    `mixer`, `fusion`, `attention`, `mlp` and `norm` also take what `wavemamba.models.register_part` made known.

    Raises:
        ConfigError: a value is out of its range.
    """

    drop_path_rate: float = 0.0
    """Probability in [0, 1) of dropping a block's output, rising linearly over the depth up to this value."""
    mixer: str = "mamba1"
    """What runs along the sequences: "mamba1", or a registered part of width C / 2."""
    spatial_scan: str = "raster"
    """The order of the spatial branch, by any name of `scan_order`; transposed and reversed from block to block."""
    frequency_scan: str = "subband"
    """The order of the frequency branch: "subband", one window a subband, or any name of `scan_order`, on the grid of
    subbands; transposed from block to block."""
    attention: str = "transformer"
    """The block that runs between others: "transformer", or a registered part."""
    attention_every: int = 4
    """It runs after every so many blocks; 0: never."""
    attention_sharing: str = "shared"
    """"shared": one for all its places; "independent": one for each place."""
    attention_heads: int = 16
    """Its heads."""
    fusion: str = "cross"
    """How the two branches are fused: "cross", "swap_k", "linear", or a registered part."""
    fusion_heads: int = 8
    """Heads of the fusion."""
    mlp: str = "gated"
    """The feed-forward layer: "gated", "plain", or a registered part."""
    mlp_ratio: float = 4.0
    """Its hidden width as a multiple of C."""
    norm: str = "rms"
    """"rms", "layer", or a registered part."""
    final_norm: bool = False
    """The output layer reads norm(residual + hidden) instead of hidden alone."""
    transform: str = "haar"
    """Frequency transform, by any name of `frequency_transform`: "haar", "dct", a wavelet of PyWavelets, ..."""
    levels: int = 2
    """How often every band is split."""
    layout: Layout = "channel"
    """Where the subbands go: "channel" (the released weights), "interleaved" or "mosaic" (the paper's figure 2)."""
    scan_path: str = "none"
    """Path family walked inside every mixer, block i along path i % 8: "none", or an order with the option `path`,
    "sweep", "zigma", "jpeg" or a registered one."""
    snake: bool = False
    """Both sequences run every second row backwards."""
    bidirectional: bool = False
    """Mixers scan backwards too."""
    conditioning: Conditioning = "none"
    """How the condition enters the mixers, beside adaLN: "none" or "conv_state"."""
    d_state: int = 16
    """State size N of the mixers."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        expect_whole(self, 1, "attention_heads", "fusion_heads", "d_state")
        expect_whole(self, 0, "attention_every", "levels")
        expect("drop_path_rate", self.drop_path_rate, lambda v: 0 <= v < 1, "a probability in [0, 1)")
        for name in ("final_norm", "snake", "bidirectional"):
            expect(name, getattr(self, name), lambda v: isinstance(v, bool), "True or False")
        choices: dict[str, Collection[str]] = {
            "attention_sharing": ATTENTION_SHARING,
            "layout": LAYOUTS,
            "scan_path": ("none", *list_scan_orders(option="path")),
            "conditioning": CONDITIONINGS,
            **{kind: part_names(kind) for kind in PART_KINDS},
        }
        for name, values in choices.items():
            object.__setattr__(self, name, choose(name, getattr(self, name), values))
        fits = f"a number that gives a hidden width from 1 to {MOST} from dim = {self.dim}"
        expect("mlp_ratio", self.mlp_ratio, lambda v: 1 <= v * self.dim <= MOST, fits)
        if self.attention_every and self.attention == "transformer":
            fits = f"a divisor of dim = {self.dim}"
            expect("attention_heads", self.attention_heads, lambda v: self.dim % v == 0, fits)
        if self.fusion in FUSION_MODES and self.fusion != "linear":
            fits = f"a divisor of dim / 2 = {self.dim // 2}"
            expect("fusion_heads", self.fusion_heads, lambda v: self.dim // 2 % v == 0, fits)
        alone = f'"raster" with snake = {self.snake}'
        expect("spatial_scan", self.spatial_scan, lambda v: v == "raster" or not self.snake, alone)
        scan_order(self.spatial_scan)
        if self.frequency_scan != "subband":
            scan_order(self.frequency_scan)
        frequency_transform(self.transform, self.levels)
