"""What a DiMSUM model is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

from wavemamba.blocks.fusion import FUSION_MODES
from wavemamba.blocks.wavelet import BAND_SCALINGS, BandScaling
from wavemamba.errors import ConfigError
from wavemamba.layers.mixers.convolved import CONDITIONINGS, Conditioning
from wavemamba.models.config import MOST, PatchConfig, expect, expect_whole
from wavemamba.models.part_registry import PART_KINDS, part_names
from wavemamba.names import choose
from wavemamba.ops.haar import LAYOUTS, Layout
from wavemamba.scans import list_scan_orders, scan_order
from wavemamba.transforms import frequency_transform

ATTENTION_SHARING = ("shared", "independent")
ALTERNATIONS = ("none", "transpose", "reverse", "transpose_reverse")
MLP_DOMAINS = ("space", "frequency")
_OF_SPATIAL = ("spatial_scan", "spatial_alternation")
_OF_FREQUENCY = (
    "frequency_scan", "frequency_alternation", "transform", "levels", "layout", "band_scaling", "mlp_domain",
)  # fmt: skip
_OF_MIXER = ("mixer", "scan_path", "snake", "bidirectional", "conditioning", "d_state")
_OF_FUSION = ("fusion", "fusion_heads")
_TRANSFORMERS = ("transformer", "window", "linear_attention")


@dataclass(frozen=True, kw_only=True)
class DiMSUMConfig(PatchConfig):
    """Options of a DiMSUM model; checks itself.

    `positions`, `spatial`, `frequency`, `mixer`, `fusion`, `attention`, `mlp` and `norm` also take what
    `wavemamba.models.register_part` made known. An option of a part that the model has not keeps its default.

    Raises:
        ConfigError: a value is out of its range.
    """

    drop_path_rate: float = 0.0
    """Probability in [0, 1) of dropping a block's output, rising linearly over the depth up to this value."""
    positions: str = "learnt"
    """What tells tokens their places: "learnt", a table that starts as "sincos"; "sincos", that table fixed; "rotary",
    channels rotated in pairs; "conditional", a depthwise convolution; or a registered part."""
    spatial: str = "mamba"
    """The branch over the tokens: "mamba", "none", or a registered part. Two branches have half of the channels each,
    one alone has all."""
    frequency: str = "mamba"
    """The branch over frequencies: "mamba", over subbands; "einfft", an MLP on the spectrum of the tokens; "none", or a
    registered part."""
    mixer: str = "mamba1"
    """What runs along the sequences: "mamba1"; "mamba2"; "gla", gated linear attention; "attention", softmax attention
    whose scores depend on distances along the scan order; or a registered part of width `branch_dim`."""
    spatial_scan: str = "raster"
    """The order of the spatial branch, by any name of `scan_order`."""
    spatial_alternation: str | None = None
    """How that order changes from block to block: "transpose", in every second block; "reverse", backwards in every
    second block; "transpose_reverse", backwards in every second block and transposed in two of four; "none". None:
    "transpose_reverse", but "none" with a path family or two directions."""
    frequency_scan: str = "subband"
    """The order of the frequency branch: "subband", one window a subband, or any name of `scan_order`, on the grid of
    subbands."""
    frequency_alternation: str | None = None
    """As `spatial_alternation`, for the frequency branch; None: "transpose", but "none" with a path family or two
    directions."""
    attention: str = "transformer"
    """The block that runs between others: "transformer", the same with attention that is linear in the tokens, "window"
    or "linear_attention", or a registered part."""
    attention_every: int = 4
    """It runs after every so many blocks; 0: never."""
    attention_sharing: str = "shared"
    """"shared": one for all its places; "independent": one for each place."""
    attention_heads: int = 16
    """Its heads."""
    fusion: str = "cross"
    """How the two branches are fused: "cross", "swap_k", "linear", "window", "linear_attention", or a registered
    part."""
    fusion_heads: int = 8
    """Heads of the fusion."""
    attention_window: int = 8
    """Side in tokens of the windows of fusion and attention "window": those of the fusion are shifted by half of it in
    every other block, those of the attention in half of its heads."""
    mlp: str = "gated"
    """The feed-forward layer: "gated", "plain", "none", or a registered part."""
    mlp_domain: str = "space"
    """What it reads: "space", the tokens; or "frequency", the subbands, before they are transformed back, where the
    frequency branch is alone."""
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
    band_scaling: BandScaling = "mean"
    """"mean": subbands are divided by the side of a cell, so that the lowest Haar band holds means; "orthonormal"."""
    scan_path: str = "none"
    """Path family walked inside every mixer, block i along path i % 8: "none", or an order with the option `path`,
    "sweep", "zigma", "jpeg" or a registered one."""
    snake: bool = False
    """Both sequences run every second row backwards."""
    bidirectional: bool = False
    """Mixers scan backwards too; not "attention", which sees all tokens."""
    conditioning: Conditioning = "none"
    """How the condition enters the mixers, beside adaLN: "none", or "conv_state" where they are Mambas."""
    d_state: int = 16
    """State size N of a channel in the mixers, for "gla" the width K of a head's keys; "attention" has none."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        expect_whole(self, 1, "attention_heads", "fusion_heads", "attention_window", "d_state")
        expect_whole(self, 0, "attention_every", "levels")
        expect("drop_path_rate", self.drop_path_rate, lambda v: 0 <= v < 1, "a probability in [0, 1)")
        for name in ("final_norm", "snake", "bidirectional"):
            expect(name, getattr(self, name), lambda v: isinstance(v, bool), "True or False")
        choices: dict[str, Collection[str]] = {
            "attention_sharing": ATTENTION_SHARING,
            "mlp_domain": MLP_DOMAINS,
            "layout": LAYOUTS,
            "band_scaling": BAND_SCALINGS,
            "scan_path": ("none", *list_scan_orders(option="path")),
            "conditioning": CONDITIONINGS,
            **{kind: part_names(kind) for kind in PART_KINDS},
        }
        for name in ("spatial_alternation", "frequency_alternation"):
            if getattr(self, name) is not None:
                choices[name] = ALTERNATIONS
        for name, values in choices.items():
            object.__setattr__(self, name, choose(name, getattr(self, name), values))
        self._check_parts()
        fits = f"a number that gives a hidden width from 1 to {MOST} from dim = {self.dim}"
        expect("mlp_ratio", self.mlp_ratio, lambda v: 1 <= v * self.dim <= MOST, fits)
        if self.attention_every and self.attention in _TRANSFORMERS:
            fits = f"a divisor of dim = {self.dim}"
            expect("attention_heads", self.attention_heads, lambda v: self.dim % v == 0, fits)
        if self.has_both_branches and self.fusion in FUSION_MODES and self.fusion != "linear":
            fits = f"a divisor of dim / 2 = {self.dim // 2}"
            expect("fusion_heads", self.fusion_heads, lambda v: self.dim // 2 % v == 0, fits)
        alone = f'"raster" with snake = {self.snake}'
        expect("spatial_scan", self.spatial_scan, lambda v: v == "raster" or not self.snake, alone)
        scan_order(self.spatial_scan)
        if self.frequency_scan != "subband":
            scan_order(self.frequency_scan)
        frequency_transform(self.transform, self.levels)

    @property
    def learns_positions(self) -> bool:
        """Whether the table of positions, where there is one, is trained."""
        return self.positions == "learnt"

    @property
    def has_both_branches(self) -> bool:
        """Whether a block has a spatial and a frequency branch."""
        return self.spatial != "none" and self.frequency != "none"

    @property
    def branch_dim(self) -> int:
        """Width of a branch, and of its mixer: C / 2 where there are two, C where there is one."""
        return self.dim // 2 if self.has_both_branches else self.dim

    def _check_parts(self) -> None:
        """Check that there is a branch, and that no option is set of what the blocks have not."""
        expect(
            "spatial, frequency", self.spatial == self.frequency == "none", lambda v: not v, "one that is not 'none'"
        )
        if self.spatial == "none":
            self._expect_defaults(_OF_SPATIAL, "spatial='none'")
        if self.frequency in ("none", "einfft"):
            self._expect_defaults(_OF_FREQUENCY, f"frequency={self.frequency!r}")
        if (self.spatial, self.frequency) == ("none", "einfft"):
            self._expect_defaults(_OF_MIXER, "spatial='none' and frequency='einfft'")
        if not self.has_both_branches:
            self._expect_defaults(_OF_FUSION, "a single branch")
        own = self.fusion in FUSION_MODES and self.attention in _TRANSFORMERS
        if own and "window" not in (self.fusion, self.attention):
            why = f"fusion={self.fusion!r} and attention={self.attention!r}"
            self._expect_defaults(("attention_window",), why)
        if self.mlp_domain == "frequency":
            fits = "'space' but for spatial='none', frequency='mamba' and an mlp"
            alone = (self.spatial, self.frequency) == ("none", "mamba") and self.mlp != "none"
            expect("mlp_domain", self.mlp_domain, lambda v: alone, fits)

    def _expect_defaults(self, names: tuple[str, ...], why: str) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ConfigError(f"{name}: expected {defaults[name]!r} with {why}, got {getattr(self, name)!r}")
