"""The parts of a DiMSUM model, made from its configuration."""

from __future__ import annotations

from torch import nn

from wavemamba.blocks import DiMSUMBlock, SharedAttention, SpatialFrequencyFusion, SpatialMambaBlock, WaveletMambaBlock
from wavemamba.layers import MambaMixer, make_mlp
from wavemamba.layers.norm import Norm
from wavemamba.models.dimsum.config import DiMSUMConfig
from wavemamba.models.dimsum.plan import BlockSpec
from wavemamba.models.part_registry import registered_part


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
    if own := registered_part("mixer", config.mixer):
        return own(config, spec)
    return MambaMixer(
        config.dim // 2,
        d_state=config.d_state,
        bidirectional=config.bidirectional,
        cond_dim=None if config.conditioning == "none" else config.dim,
        conditioning=config.conditioning,
    )


def make_fusion(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    """What fuses the two branches: two maps of width C / 2 to one of width C."""
    if own := registered_part("fusion", config.fusion):
        return own(config, spec)
    heads = None if config.fusion == "linear" else config.fusion_heads
    return SpatialFrequencyFusion(config.dim, heads, mode=config.fusion)  # type: ignore[arg-type]  # checked by the configuration


def make_feed_forward(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    """The feed-forward layer of a block."""
    if own := registered_part("mlp", config.mlp):
        return own(config, spec)
    return make_mlp(config.dim, config.mlp_ratio, gated=config.mlp == "gated")


def make_norms(config: DiMSUMConfig, spec: BlockSpec) -> Norm:
    """What makes the norms of a block from their width."""
    if own := registered_part("norm", config.norm):
        return lambda dim: own(config, spec)
    return config.norm


def make_attention(config: DiMSUMConfig, spec: BlockSpec) -> nn.Module:
    """What runs after a block on the hidden stream: a map of width C with its condition, to the same shape."""
    if own := registered_part("attention", config.attention):
        return own(config, spec)
    gated = config.mlp != "plain"
    return SharedAttention(
        config.dim, num_heads=config.attention_heads, cond_dim=config.dim, mlp_ratio=config.mlp_ratio, gated_mlp=gated
    )
