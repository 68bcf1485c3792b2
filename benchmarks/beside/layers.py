"""Layers and mixers beside timm's, diffusers' and the Mamba packages', with the same weights."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from beside.contest import Contest, Side, alive, normal, with_weights_of
from wavemamba.compat.state_dicts import to_mamba, to_mamba2
from wavemamba.layers import (
    CrossAttention,
    GatedMlp,
    LabelEmbed,
    LayerNorm,
    Mamba2Mixer,
    MambaMixer,
    Mlp,
    PatchEmbed,
    RMSNorm,
    SelfAttention,
    TimeEmbed,
    add_norm,
)
from wavemamba.layers.embeddings import unpatchify

TOKENS = [(8, 16, 64), (2, 256, 384), (4, 1024, 512)]


def both(ours: nn.Module, peer: nn.Module, *inputs: Any, names: dict[str, str] | None = None) -> tuple[Side, Side]:
    """Two modules that take the same and have the same weights."""
    alive(ours)
    others = tuple(x.clone() for x in inputs)
    return Side(call=ours, inputs=inputs), Side(call=with_weights_of(peer, ours, names), inputs=others)


def rms_norm(batch: int, length: int, width: int) -> tuple[Side, Side]:
    return both(RMSNorm(width), nn.RMSNorm(width, 1e-5), normal(batch, length, width))


def layer_norm(batch: int, length: int, width: int) -> tuple[Side, Side]:
    return both(LayerNorm(width), nn.LayerNorm(width), normal(batch, length, width))


def added_norm(batch: int, length: int, width: int) -> tuple[Side, Side]:
    hidden, residual = normal(batch, length, width), normal(batch, length, width, seed=1)
    ours, peer = RMSNorm(width), nn.RMSNorm(width, 1e-5)

    def plain(hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = hidden + residual
        return peer(total), total

    return (
        Side(call=lambda *given: add_norm(*given, ours), inputs=(hidden, residual), read=sum),
        Side(call=plain, inputs=(hidden.clone(), residual.clone()), read=sum),
    )


def mlp(batch: int, length: int, width: int) -> tuple[Side, Side]:
    from timm.layers import Mlp as Peer

    peer = Peer(width, 4 * width, act_layer=functools.partial(nn.GELU, approximate="tanh"))
    return both(Mlp(width, 4 * width), peer, normal(batch, length, width))


def gated_mlp(batch: int, length: int, width: int) -> tuple[Side, Side]:
    from timm.layers import GluMlp

    act = functools.partial(nn.GELU, approximate="tanh")
    peer = GluMlp(width, 8 * width, act_layer=act, gate_last=False)
    return both(GatedMlp(width, 4 * width), peer, normal(batch, length, width))


def self_attention(batch: int, length: int, width: int) -> tuple[Side, Side]:
    from timm.layers import Attention

    heads = width // 64 or 1
    return both(SelfAttention(width, heads), Attention(width, heads, qkv_bias=True), normal(batch, length, width))


def cross_attention(batch: int, length: int, width: int) -> tuple[Side, Side]:
    from diffusers.models.attention_processor import Attention

    heads = width // 64
    peer = Attention(width, cross_attention_dim=width, heads=heads, dim_head=64)
    names = {"q.": "to_q.", "k.": "to_k.", "v.": "to_v.", "proj.": "to_out.0."}
    inputs = normal(batch, length, width), normal(batch, 77, width, seed=1)
    return both(CrossAttention(width, heads, 64), peer, *inputs, names=names)


def patches(batch: int, side: int, width: int) -> tuple[Side, Side]:
    from timm.layers import PatchEmbed as Peer

    ours, peer = both(PatchEmbed(4, width, 2), Peer(side, 2, 4, width), normal(batch, 4, side, side))
    return Side(call=ours.call, inputs=ours.inputs, read=_flat), peer


def _flat(y: Tensor) -> Tensor:
    return y.flatten(1, 2)


def patches_back(batch: int, side: int, channels: int) -> tuple[Side, Side]:
    tokens = normal(batch, side, side, 4 * channels)

    def einsum(tokens: Tensor) -> Tensor:
        y = torch.einsum("nhwpqc->nchpwq", tokens.reshape(batch, side, side, 2, 2, channels))
        return y.reshape(batch, channels, 2 * side, 2 * side)

    return Side(call=lambda x: unpatchify(x, (2, 2)), inputs=(tokens,)), Side(call=einsum, inputs=(tokens.clone(),))


class DiffusersTime(nn.Module):
    def __init__(self, width: int) -> None:
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        super().__init__()
        self.features = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.mlp = TimestepEmbedding(256, width)

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(self.features(t))


def times(batch: int, width: int) -> tuple[Side, Side]:
    names = {"mlp.0.": "mlp.linear_1.", "mlp.2.": "mlp.linear_2."}
    t = torch.rand(batch, generator=torch.Generator().manual_seed(0))
    return both(TimeEmbed(width), DiffusersTime(width), t, names=names)


class Labels(nn.Module):
    """A lookup as a function of the labels alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = LabelEmbed(1000, width, 0.1).eval()

    def forward(self, labels: Tensor) -> Tensor:
        return self.embed(labels, labels)


def labels(batch: int, width: int) -> tuple[Side, Side]:
    from diffusers.models.embeddings import LabelEmbedding

    given = torch.randint(1000, (batch,), generator=torch.Generator().manual_seed(0))
    peer = LabelEmbedding(1000, width, 0.1).eval()
    return both(Labels(width), peer, given, names={"embed.table.": "embedding_table."})


def mamba_beside_mambapy(batch: int, length: int, width: int) -> tuple[Side, Side]:
    from mambapy.mamba import MambaBlock, MambaConfig

    return _mamba(MambaBlock(MambaConfig(d_model=width, n_layers=1)), batch, length, width)


def mamba_beside_transformers(batch: int, length: int, width: int) -> tuple[Side, Side]:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer as Peer

    config = MambaConfig(hidden_size=width, state_size=16, num_hidden_layers=1)
    return _mamba(Peer(config, layer_idx=0), batch, length, width)


def _mamba(peer: nn.Module, batch: int, length: int, width: int) -> tuple[Side, Side]:
    ours, x = MambaMixer(width), normal(batch, length, width)
    peer.load_state_dict(to_mamba(ours.state_dict()))
    return Side(call=ours, inputs=(x,)), Side(call=peer, inputs=(x.clone(),))


def mamba2(batch: int, length: int, width: int) -> tuple[Side, Side]:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as Peer

    ours, x = Mamba2Mixer(width), normal(batch, length, width)
    config = Mamba2Config(
        hidden_size=width,
        state_size=ours.d_state,
        num_heads=ours.heads,
        head_dim=ours.head_dim,
        n_groups=1,
        chunk_size=64,
        num_hidden_layers=1,
    )
    peer = Peer(config, layer_idx=0)
    peer.load_state_dict(to_mamba2(ours.state_dict()))
    return Side(call=ours, inputs=(x,)), Side(call=peer, inputs=(x.clone(),))


CONTESTS = [
    Contest(name="layer: RMSNorm", peer="nn.RMSNorm", make=rms_norm, sizes=TOKENS),
    Contest(name="layer: LayerNorm", peer="nn.LayerNorm", make=layer_norm, sizes=TOKENS),
    Contest(name="layer: add_norm", peer="sum and nn.RMSNorm", make=added_norm, sizes=TOKENS),
    Contest(name="layer: Mlp", peer="timm's Mlp", make=mlp, sizes=TOKENS),
    Contest(name="layer: GatedMlp", peer="timm's GluMlp", make=gated_mlp, sizes=TOKENS),
    Contest(name="layer: SelfAttention", peer="timm's Attention", make=self_attention, sizes=TOKENS),
    Contest(name="layer: CrossAttention", peer="diffusers' Attention", make=cross_attention, sizes=TOKENS),
    Contest(
        name="layer: PatchEmbed",
        peer="timm's PatchEmbed",
        make=patches,
        sizes=[(1, 16, 384), (16, 32, 384), (4, 64, 1024)],
    ),
    Contest(name="layer: unpatchify", peer="einsum", make=patches_back, sizes=[(1, 8, 4), (64, 16, 4), (4, 128, 8)]),
    Contest(
        name="layer: TimeEmbed",
        peer="diffusers' Timesteps and TimestepEmbedding",
        make=times,
        sizes=[(1, 384), (64, 384), (64, 1024)],
    ),
    Contest(
        name="layer: LabelEmbed",
        peer="diffusers' LabelEmbedding",
        make=labels,
        sizes=[(1, 384), (64, 384), (1024, 1024)],
        trains=False,
    ),
    Contest(
        name="layer: MambaMixer",
        peer="mambapy's MambaBlock",
        make=mamba_beside_mambapy,
        sizes=[(8, 16, 32), (1, 256, 192), (1, 1024, 512)],
        tolerance=1e-4,
    ),
    Contest(
        name="layer: MambaMixer",
        peer="transformers' MambaMixer",
        make=mamba_beside_transformers,
        sizes=[(8, 16, 32), (1, 128, 128), (1, 256, 256)],
        tolerance=1e-4,
    ),
    Contest(
        name="layer: Mamba2Mixer",
        peer="transformers' Mamba2Mixer",
        make=mamba2,
        sizes=[(8, 16, 32), (1, 256, 192), (1, 1024, 512)],
        tolerance=1e-4,
    ),
]
