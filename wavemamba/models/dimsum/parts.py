"""The parts of a DiMSUM model, made from its configuration."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from wavemamba.blocks import DiMSUMBlock, SharedAttention, SpatialFrequencyFusion, SpatialMambaBlock, WaveletMambaBlock
from wavemamba.blocks.fusion import FUSION_MODES, FusionMode
from wavemamba.layers import MambaMixer, make_mlp
from wavemamba.layers.norm import NORMS, Norm
from wavemamba.models.dimsum.config import DiMSUMConfig
from wavemamba.models.dimsum.plan import BlockSpec
from wavemamba.models.part_registry import built_in_part, find_part


def make_block(
    config: DiMSUMConfig,
    spec: BlockSpec,
    *,
    spatial: nn.Module | None = None,
    frequency: nn.Module | None = None,
    fusion: nn.Module | None = None,
    mlp: nn.Module | None = None,
) -> DiMSUMBlock:
    """A block as the configuration has it; a function passed as `make_block=` can call it with parts of its own.

    Args:
        config: the model's options.
        spec: what is particular to the block.
        spatial: see `DiMSUMBlock`.
        frequency: see `DiMSUMBlock`.
        fusion: see `DiMSUMBlock`.
        mlp: see `DiMSUMBlock`.
    """
    half, dim = config.dim // 2, config.dim
    if spatial is None:
        spatial = SpatialMambaBlock(half, dim, scan=spec.spatial_scan, mixer=make_mixer(config, spec))
    if frequency is None:
        frequency = WaveletMambaBlock(
            half,
            dim,
            transform=config.transform,
            levels=config.levels,
            layout=config.layout,
            scan=spec.frequency_scan,
            mixer=make_mixer(config, spec),
        )
    return DiMSUMBlock(
        dim,
        dim,
        spatial=spatial,
        frequency=frequency,
        fusion=make_fusion(config, spec) if fusion is None else fusion,
        mlp=make_feed_forward(config, spec) if mlp is None else mlp,
        norm=make_norms(config, spec),
        drop_path=spec.drop_path,
    )


def make_mixer(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    """What runs along one sequence, of width C / 2, with conditions of width C."""
    return find_part("mixer", config.mixer)(config, spec)


def make_fusion(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    """What fuses the two branches: two maps of width C / 2 to one of width C."""
    return find_part("fusion", config.fusion)(config, spec)


def make_feed_forward(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    """The feed-forward layer of a block."""
    return find_part("mlp", config.mlp)(config, spec)


def make_norms(config: DiMSUMConfig, spec: BlockSpec) -> Norm:
    """What makes the norms of a block from their width, which is C."""
    make = find_part("norm", config.norm)
    return lambda dim: make(config, spec)


def make_attention(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    """What runs after a block on the hidden stream: a map of width C with its condition, to the same shape."""
    return find_part("attention", config.attention)(config, spec)


@built_in_part("mixer", "mamba1")
def _mamba1(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    return MambaMixer(
        config.dim // 2,
        d_state=config.d_state,
        bidirectional=config.bidirectional,
        cond_dim=None if config.conditioning == "none" else config.dim,
        conditioning=config.conditioning,
    )


@built_in_part("mlp", "gated")
def _gated(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    return make_mlp(config.dim, config.mlp_ratio, gated=True)


@built_in_part("mlp", "plain")
def _plain(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    return make_mlp(config.dim, config.mlp_ratio, gated=False)


@built_in_part("attention", "transformer")
def _transformer(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    gated = config.mlp != "plain"
    return SharedAttention(
        config.dim, num_heads=config.attention_heads, cond_dim=config.dim, mlp_ratio=config.mlp_ratio, gated_mlp=gated
    )


def _fusion(mode: FusionMode) -> Callable[[DiMSUMConfig, BlockSpec], nn.Module]:
    return lambda config, spec: SpatialFrequencyFusion(
        config.dim, None if mode == "linear" else config.fusion_heads, mode=mode
    )


def _norm(make: Callable[[int], nn.Module]) -> Callable[[DiMSUMConfig, BlockSpec], nn.Module]:
    return lambda config, spec: make(config.dim)


for _mode in FUSION_MODES:
    built_in_part("fusion", _mode)(_fusion(_mode))
for _name, _make in NORMS.items():
    built_in_part("norm", _name)(_norm(_make))
