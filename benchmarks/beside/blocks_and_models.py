"""Blocks and models: beside timm's transformer with the same weights, beside diffusers' DiT by the GFLOP."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import wavemamba
from beside.contest import Contest, Side, alive, normal, with_weights_of
from wavemamba import blocks

BATCH_SIDE_WIDTH = [(8, 4, 64), (1, 16, 384), (2, 16, 1024)]
SIZES = {"s": (384, 6), "b": (768, 12), "l": (1024, 16)}
DEPTH = 4
CONDITIONED: dict[str, Callable[[int], nn.Module]] = {
    "SharedAttention": lambda width: blocks.SharedAttention(width, width, num_heads=_heads(width), gated_mlp=False),
    "SharedAttention, window": lambda width: blocks.SharedAttention(
        width, width, num_heads=_heads(width), mode="window"
    ),
    "SharedAttention, linear_attention": lambda width: blocks.SharedAttention(
        width, width, num_heads=_heads(width), mode="linear_attention"
    ),
    "SpatialMambaBlock": lambda width: blocks.SpatialMambaBlock(width, width, scan="hilbert"),
    "WaveletMambaBlock": lambda width: blocks.WaveletMambaBlock(width, width),
    "DiMSUMBlock": lambda width: blocks.DiMSUMBlock(width, width),
    "ZigMaBlock": lambda width: blocks.ZigMaBlock(width, width, scan="sweep"),
    "DiffuSSMBlock": lambda width: blocks.DiffuSSMBlock(width, width),
    "EinFFT": lambda width: blocks.EinFFT(width, width),
}
FAMILIES = {
    "dit": "dit_{size}2",
    "dimsum": "dimsum_{size}2",
    "dimsum, window": "dimsum_{size}2_window",
    "dimsum, linear": "dimsum_{size}2_linear",
    "wavemamba_diffusion": "wavemamba_diffusion_{size}2",
    "zigma": "zigma_{size}2",
    "diffussm": "diffussm_{size}",
}


def _heads(width: int) -> int:
    return max(1, width // 64)


def transformer(batch: int, side: int, width: int) -> tuple[Side, Side]:
    """The block without a condition beside a ViT's."""
    from timm.models.vision_transformer import Block

    x = normal(batch, side, side, width)
    ours = alive(blocks.SharedAttention(width, num_heads=_heads(width), gated_mlp=False))
    peer = Block(
        width,
        _heads(width),
        qkv_bias=True,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        act_layer=functools.partial(nn.GELU, approximate="tanh"),
    )
    names = {"attention.": "attn.", "norms.0.": "norm1.", "norms.1.": "norm2."}
    given = x.flatten(1, 2).clone()
    return (
        Side(call=ours, inputs=(x,), read=_tokens, read_input=_tokens),
        Side(call=with_weights_of(peer, ours, names), inputs=(given,)),
    )


def _tokens(y: Tensor) -> Tensor:
    return y.flatten(1, 2)


def mamba_block(batch: int, side: int, width: int) -> tuple[Side, Side]:
    """A residual Mamba step with its norm."""
    from mambapy.mamba import MambaConfig, ResidualBlock

    from wavemamba.compat.state_dicts import to_mamba

    x = normal(batch, side, side, width)
    ours = blocks.SpatialMambaBlock(width)
    peer = ResidualBlock(MambaConfig(d_model=width, n_layers=1))
    peer.mixer.load_state_dict(to_mamba(ours.step.mixer.state_dict()))
    given = x.flatten(1, 2).clone()
    return (
        Side(call=ours, inputs=(x,), read=_tokens, read_input=_tokens),
        Side(call=peer, inputs=(given,)),
    )


def beside_dit_block(name: str, batch: int, side: int, width: int) -> tuple[Side, Side]:
    from diffusers.models.attention import BasicTransformerBlock

    x, cond = normal(batch, side, side, width), normal(batch, width, seed=1)
    peer = BasicTransformerBlock(
        width,
        _heads(width),
        width // _heads(width),
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        attention_bias=True,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    time, label = torch.full((batch,), 500), torch.full((batch,), 7)

    def block(tokens: Tensor) -> Tensor:
        return peer(tokens, timestep=time, class_labels=label)

    ours = Side(call=alive(CONDITIONED[name](width)), inputs=(x, cond))
    return ours, Side(call=_Called(peer.eval(), block), inputs=(x.flatten(1, 2).clone(),))


class _Called(nn.Module):
    """A module that is called in a way of its own."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(*inputs)


class TwoAttentions(nn.Module):
    """Cross attention of two maps to each other by PyTorch's module, and a projection of both results."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        half = width // 2
        self.first, self.second = (nn.MultiheadAttention(half, heads, batch_first=True) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, s: Tensor, f: Tensor) -> Tensor:
        both = self.first(s, f, f, need_weights=False)[0], self.second(f, s, s, need_weights=False)[0]
        return self.proj(torch.cat(both, dim=-1))


def fusion(batch: int, side: int, width: int) -> tuple[Side, Side]:
    maps = normal(batch, side, side, width // 2), normal(batch, side, side, width // 2, seed=1)
    heads = max(1, width // 128)
    ours = blocks.SpatialFrequencyFusion(width, heads)
    peer = TwoAttentions(width, heads).train()
    return Side(call=ours, inputs=maps), Side(call=peer, inputs=tuple(x.flatten(1, 2).clone() for x in maps))


def model(family: str, size: str, batch: int) -> tuple[Side, Side]:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    width, heads = SIZES[size]
    ours = alive(wavemamba.create_model(FAMILIES[family].format(size=size), depth=DEPTH)).eval()
    peer = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, num_layers=DEPTH, sample_size=32, patch_size=2
    ).eval()
    x, t = normal(batch, 4, 32, 32), torch.full((batch,), 0.5)
    y, step = torch.full((batch,), 7), torch.full((batch,), 500)

    def call(x: Tensor) -> Tensor:
        return peer(x, timestep=step, class_labels=y).sample

    def own(x: Tensor) -> Tensor:
        return ours(x, t, y)

    return Side(call=_Called(ours, own), inputs=(x,)), Side(call=_Called(peer, call), inputs=(x.clone(),))


CONTESTS = [
    Contest(
        name="block: SharedAttention, no condition",
        peer="timm's ViT block",
        make=transformer,
        sizes=BATCH_SIDE_WIDTH,
        tolerance=1e-4,
    ),
    Contest(
        name="block: SpatialMambaBlock, no condition",
        peer="mambapy's ResidualBlock",
        make=mamba_block,
        sizes=[(8, 4, 64), (1, 16, 192), (1, 32, 384)],
        tolerance=1e-4,
    ),
    Contest(
        name="block: SpatialFrequencyFusion",
        peer="two nn.MultiheadAttention",
        make=fusion,
        sizes=BATCH_SIDE_WIDTH,
        per_gflop=True,
    ),
    *(
        Contest(
            name=f"block: {name}",
            peer="diffusers' DiT block",
            make=functools.partial(beside_dit_block, name),
            sizes=BATCH_SIDE_WIDTH,
            per_gflop=True,
        )
        for name in CONDITIONED
    ),
    *(
        Contest(
            name=f"model: {family}",
            peer=f"diffusers' DiT, {DEPTH} blocks each",
            make=functools.partial(model, family),
            sizes=[("s", 1), ("s", 4), ("l", 2)] if family == "diffussm" else [("s", 1), ("b", 1), ("l", 2)],
            per_gflop=True,
        )
        for family in FAMILIES
    ),
]
