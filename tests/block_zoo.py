"""One of every public block, in its variants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wavemamba import (
    DiMSUMBlock,
    MambaMixer,
    SharedAttention,
    SpatialFrequencyFusion,
    SpatialMambaBlock,
    WaveletMambaBlock,
    scan_order,
)
from wavemamba.blocks import DiffuSSMBlock, EinFFT, SingleBranchBlock, ZigMaBlock
from wavemamba.layers import AttentionMixer, GLAMixer, Mamba2Mixer, SelfAttention, WindowAttention, make_mlp
from wavemamba.ops.haar import LAYOUTS

DIM, COND = 16, 6

BLOCKS = {
    "spatial": lambda cond: SpatialMambaBlock(DIM, cond, scan="hilbert"),
    "spatial, conditioned mixer": lambda cond: SpatialMambaBlock(
        DIM, cond, mixer=MambaMixer(DIM, cond_dim=cond, conditioning="conv_state" if cond else "none")
    ),
    "spatial, both ways": lambda cond: SpatialMambaBlock(DIM, cond, mixer=MambaMixer(DIM, bidirectional=True)),
    "spatial, Mamba-2": lambda cond: SpatialMambaBlock(
        DIM,
        cond,
        scan="snake",
        mixer=Mamba2Mixer(DIM, d_state=4, head_dim=8, cond_dim=cond, conditioning="conv_state" if cond else "none"),
    ),
    "spatial, softmax attention": lambda cond: SpatialMambaBlock(DIM, cond, scan="hilbert", mixer=AttentionMixer(DIM)),
    "wavelet, gated linear attention": lambda cond: WaveletMambaBlock(
        DIM, cond, mixer=GLAMixer(DIM, bidirectional=True)
    ),
    **{
        f"wavelet {layout}": lambda cond, layout=layout: WaveletMambaBlock(DIM, cond, layout=layout)
        for layout in LAYOUTS
    },
    "wavelet, 3 levels": lambda cond: WaveletMambaBlock(DIM, cond, levels=3, scan="hilbert"),
    "wavelet, 1 level": lambda cond: WaveletMambaBlock(DIM, cond, levels=1, scan=scan_order("window", window=2)),
    "wavelet, no level": lambda cond: WaveletMambaBlock(DIM, cond, levels=0),
    "wavelet db2": lambda cond: WaveletMambaBlock(DIM, cond, transform="db2"),
    "wavelet dct": lambda cond: WaveletMambaBlock(DIM, cond, transform="dct", layout="interleaved"),
    "wavelet, orthonormal, with an MLP": lambda cond: WaveletMambaBlock(
        DIM, cond, levels=1, scaling="orthonormal", mlp=make_mlp(DIM, 2), norm="layer"
    ),
    "einfft": lambda cond: EinFFT(DIM, cond),
    "einfft, one group": lambda cond: EinFFT(DIM, cond, blocks=1, threshold=0, residual=True),
    "attention": lambda cond: SharedAttention(DIM, cond, num_heads=4),
    "attention, plain MLP": lambda cond: SharedAttention(DIM, cond, num_heads=4, mlp_ratio=2, gated_mlp=False),
    "attention in windows": lambda cond: SharedAttention(
        DIM, cond, attention=SelfAttention(DIM, 4, WindowAttention(3))
    ),
    "linear attention": lambda cond: SharedAttention(DIM, cond, num_heads=4, mode="linear_attention"),
    "dimsum": lambda cond: DiMSUMBlock(DIM, cond),
    "dimsum, in windows": lambda cond: DiMSUMBlock(
        DIM, cond, fusion=SpatialFrequencyFusion(DIM, 2, attend=WindowAttention(3, 1))
    ),
    "dimsum, linear attention": lambda cond: DiMSUMBlock(
        DIM, cond, fusion=SpatialFrequencyFusion(DIM, 2, mode="linear_attention")
    ),
    "dimsum, linear fusion": lambda cond: DiMSUMBlock(DIM, cond, fusion=SpatialFrequencyFusion(DIM, mode="linear")),
    "dimsum, swapped keys": lambda cond: DiMSUMBlock(
        DIM, cond, norm="layer", fusion=SpatialFrequencyFusion(DIM, 2, mode="swap_k")
    ),
    "dimsum without an MLP": lambda cond: DiMSUMBlock(DIM, cond, frequency=EinFFT(DIM // 2, cond), mlp="none"),
    "one branch": lambda cond: SingleBranchBlock(DIM, cond, branch=SpatialMambaBlock(DIM, cond, scan="snake")),
    "one branch, no MLP": lambda cond: SingleBranchBlock(
        DIM, cond, branch=WaveletMambaBlock(DIM, cond, mlp=make_mlp(DIM, 2)), mlp="none", norm="layer"
    ),
    "zigma": lambda cond: ZigMaBlock(DIM, cond, scan="snake"),
    "diffussm": lambda cond: DiffuSSMBlock(DIM, cond),
    "diffussm, quarters": lambda cond: DiffuSSMBlock(DIM, cond, shorten=4, scan="hilbert"),
}
ALWAYS_CONDITIONED = ("zigma",)
CASES = [(name, cond) for name in BLOCKS for cond in (None, COND) if cond or name not in ALWAYS_CONDITIONED]
"""Every block, with a condition and without where it can do without."""


def build(name: str, cond_dim: int | None) -> nn.Module:
    """A block with no parameter at zero: zero-initialised layers would hide their inputs."""
    torch.manual_seed(0)
    block = BLOCKS[name](cond_dim)
    for parameter in block.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return block


def run(block: nn.Module, x: Tensor, cond: Tensor | None) -> Tensor:
    """The first result of a block."""
    y = block(x, cond)
    return y[0] if isinstance(y, tuple) else y


def condition(cond_dim: int | None, batch: int = 2, **kwargs: Any) -> Tensor | None:
    """A random condition, where the block takes one."""
    return torch.randn(batch, cond_dim, **kwargs) if cond_dim else None
