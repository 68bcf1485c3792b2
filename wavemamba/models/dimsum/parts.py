"""The parts of a DiMSUM model, made from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from wavemamba.blocks import (
    DiMSUMBlock,
    EinFFT,
    PreNormBlock,
    SharedAttention,
    SingleBranchBlock,
    SpatialFrequencyFusion,
    SpatialMambaBlock,
    WaveletMambaBlock,
)
from wavemamba.blocks.fusion import FusionMode
from wavemamba.errors import ConfigError
from wavemamba.layers import (
    AttentionMixer,
    ConditionalPositions,
    FullAttention,
    GLAMixer,
    LinearAttention,
    Mamba2Mixer,
    MambaMixer,
    RotaryPositions,
    SelfAttention,
    WindowAttention,
    make_mlp,
)
from wavemamba.layers.norm import NORMS, Norm
from wavemamba.layers.part_checks import expect_part
from wavemamba.models.dimsum.config import DiMSUMConfig
from wavemamba.models.dimsum.plan import BlockSpec
from wavemamba.models.part_registry import PartMaker, built_in_part, find_part

_Attend = Callable[[DiMSUMConfig, int | None], nn.Module]


def make_block(
    config: DiMSUMConfig,
    spec: BlockSpec,
    *,
    spatial: nn.Module | None = None,
    frequency: nn.Module | None = None,
    fusion: nn.Module | None = None,
    mlp: nn.Module | None = None,
) -> PreNormBlock:
    """A block as the configuration has it; a function passed as `make_block=` can call it with parts of its own.

    Args:
        config: the model's options.
        spec: what is particular to the block.
        spatial: see `DiMSUMBlock`; of width `config.branch_dim`.
        frequency: see `DiMSUMBlock`; of width `config.branch_dim`.
        fusion: see `DiMSUMBlock`.
        mlp: see `DiMSUMBlock`.

    Returns:
        A `DiMSUMBlock`, or a `SingleBranchBlock` where the configuration has one branch.
    """
    spatial = make_spatial(config, spec) if spatial is None else spatial
    frequency = make_frequency(config, spec) if frequency is None else frequency
    if mlp is None and config.mlp_domain == "space":
        mlp = make_feed_forward(config, spec)
    common: dict[str, Any] = {
        "mlp": "none" if mlp is None else mlp,
        "norm": make_norms(config, spec),
        "drop_path": spec.drop_path,
    }
    branch = frequency if spatial is None else spatial
    if spatial is not None and frequency is not None:
        fusion = make_fusion(config, spec) if fusion is None else fusion
        return DiMSUMBlock(config.dim, config.dim, spatial=spatial, frequency=frequency, fusion=fusion, **common)
    assert branch is not None  # which the configuration sees to
    return SingleBranchBlock(config.dim, config.dim, branch=branch, **common)


def make_positions(config: DiMSUMConfig) -> nn.Module | None:
    """What gives the tokens their places: (B, H, W, C) with a condition, to the same shape; None: a table, added."""
    part = find_part("positions", config.positions)(config, None)
    return None if part is None else expect_part("positions", part, ("tokens", "cond"))


def make_spatial(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module | None:
    """The branch over the tokens: a map of width `branch_dim` with its condition, to the same shape; None: no such."""
    return find_part("spatial", config.spatial)(config, spec)


def make_frequency(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module | None:
    """The branch over frequencies, as `make_spatial`."""
    return find_part("frequency", config.frequency)(config, spec)


def make_mixer(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    """What runs along one sequence, of width `branch_dim`, with conditions of width C."""
    return _made("mixer", config.mixer, config, spec)


def make_fusion(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    """What fuses the two branches: two maps of width C / 2 to one of width C."""
    return _made("fusion", config.fusion, config, spec)


def make_feed_forward(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module | None:
    """The feed-forward layer of a block, or None."""
    return find_part("mlp", config.mlp)(config, spec)


def make_norms(config: DiMSUMConfig, spec: BlockSpec) -> Norm:
    """What makes the norms of a block from their width, which is C."""
    return lambda dim: _made("norm", config.norm, config, spec)


def make_attention(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    """What runs after a block on the hidden stream: a map of width C with its condition, to the same shape."""
    return _made("attention", config.attention, config, spec)


def _made(kind: str, name: str, config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    part = find_part(kind, name)(config, spec)
    if part is None:
        raise ConfigError(f"{kind}: expected a module from what makes {name!r}, got None; return one")
    return part


@built_in_part("positions", "learnt")
@built_in_part("positions", "sincos")
@built_in_part("spatial", "none")
@built_in_part("frequency", "none")
@built_in_part("mlp", "none")
def _no_part(config: DiMSUMConfig, spec: BlockSpec | None) -> None:
    """A name that stands for no module."""


@built_in_part("positions", "rotary")
def _rotary(config: DiMSUMConfig, spec: BlockSpec | None) -> nn.Module:
    return RotaryPositions(config.dim)


@built_in_part("positions", "conditional")
def _conditional(config: DiMSUMConfig, spec: BlockSpec | None) -> nn.Module:
    return ConditionalPositions(config.dim, config.dim)


@built_in_part("spatial", "mamba")
def _spatial(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    return SpatialMambaBlock(config.branch_dim, config.dim, scan=spec.spatial_scan, mixer=make_mixer(config, spec))


@built_in_part("frequency", "mamba")
def _subbands(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    in_frequency = config.mlp_domain == "frequency"
    return WaveletMambaBlock(
        config.branch_dim,
        config.dim,
        transform=config.transform,
        levels=config.levels,
        layout=config.layout,
        scaling=config.band_scaling,
        scan=spec.frequency_scan,
        mixer=make_mixer(config, spec),
        mlp=make_feed_forward(config, spec) if in_frequency else None,
        norm=make_norms(config, spec) if in_frequency else None,
    )


@built_in_part("frequency", "einfft")
def _einfft(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    return EinFFT(config.branch_dim, config.dim, residual=not config.has_both_branches)


@built_in_part("mixer", "mamba1")
def _mamba1(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    return MambaMixer(
        config.branch_dim,
        d_state=config.d_state,
        bidirectional=config.bidirectional,
        cond_dim=None if config.conditioning == "none" else config.dim,
        conditioning=config.conditioning,
    )


@built_in_part("mixer", "mamba2")
def _mamba2(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    return Mamba2Mixer(
        config.branch_dim,
        d_state=config.d_state,
        bidirectional=config.bidirectional,
        cond_dim=None if config.conditioning == "none" else config.dim,
        conditioning=config.conditioning,
    )


@built_in_part("mixer", "gla")
def _gla(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    _expect_default(config, "conditioning", "has no convolution for a condition to fill")
    return GLAMixer(config.branch_dim, d_state=config.d_state, bidirectional=config.bidirectional)


@built_in_part("mixer", "attention")
def _attention(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    _expect_default(config, "conditioning", "has no convolution for a condition to fill")
    _expect_default(config, "d_state", "remembers all tokens and has no state of fixed size")
    _expect_default(config, "bidirectional", "sees all tokens at once and has no direction")
    return AttentionMixer(config.branch_dim)


def _expect_default(config: DiMSUMConfig, option: str, why: str) -> None:
    """Refuse an option that the mixer of the configuration has not."""
    default, value = getattr(DiMSUMConfig, option), getattr(config, option)
    if value != default:
        raise ConfigError(
            f"{option}: expected {default!r} with mixer={config.mixer!r}, which {why}, got {value!r}; leave it out"
        )


@built_in_part("mlp", "gated")
def _gated(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    return make_mlp(config.dim, config.mlp_ratio, gated=True)


@built_in_part("mlp", "plain")
def _plain(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    return make_mlp(config.dim, config.mlp_ratio, gated=False)


def _full(config: DiMSUMConfig, shift: int | None) -> nn.Module:
    return FullAttention()


def _windows(config: DiMSUMConfig, shift: int | None) -> nn.Module:
    return WindowAttention(config.attention_window, shift)


def _linear(config: DiMSUMConfig, shift: int | None) -> nn.Module:
    return LinearAttention()


def _fusion(mode: FusionMode, attend: _Attend) -> PartMaker:
    def make(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
        shift = config.attention_window // 2 * (spec.index % 2)
        return SpatialFrequencyFusion(config.dim, config.fusion_heads, mode=mode, attend=attend(config, shift))

    return make


@built_in_part("fusion", "linear")
def _linear_fusion(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    return SpatialFrequencyFusion(config.dim, mode="linear")


def _transformer(attend: _Attend) -> PartMaker:
    def make(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
        return SharedAttention(
            config.dim,
            config.dim,
            attention=SelfAttention(config.dim, config.attention_heads, attend(config, None)),
            mlp_ratio=config.mlp_ratio,
            gated_mlp=config.mlp != "plain",
        )

    return make


def _norm(make: Callable[[int], nn.Module]) -> PartMaker:
    return lambda config, spec: make(config.dim)


_parts: dict[str, dict[str, PartMaker]] = {
    "fusion": {
        "cross": _fusion("cross", _full),
        "swap_k": _fusion("swap_k", _full),
        "window": _fusion("cross", _windows),
        "linear_attention": _fusion("cross", _linear),
    },
    "attention": {
        "transformer": _transformer(_full),
        "window": _transformer(_windows),
        "linear_attention": _transformer(_linear),
    },
    "norm": {name: _norm(make) for name, make in NORMS.items()},
}
for _kind, _makers in _parts.items():
    for _name, _make in _makers.items():
        built_in_part(_kind, _name)(_make)
