"""`mamba_ssm.modules.mha`: the attention layer of hybrid models, without rotary positions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.compat.mamba_ssm.modules.layers import CausalConv1d, check_tokens, keep_last_inputs, kept_states
from wavemamba.errors import ConfigError, ShapeError

__all__ = ["MHA"]


class MHA(nn.Module):
    """Self-attention (B, L, C) -> (B, L, C), with a convolution before and a gated MLP beside it where asked.

    Args:
        embed_dim: width C.
        num_heads: heads of the queries.
        num_heads_kv: heads of keys and values, a divisor of `num_heads`; None: as many.
        head_dim: width of a head; None: C / num_heads.
        mlp_dim: width of both halves of the MLP, rounded up to a multiple of 256; 0: none.
        qkv_proj_bias: of the first projection.
        out_proj_bias: of the last one.
        softmax_scale: None: 1 / sqrt(head_dim).
        causal: a step sees itself and those before it.
        layer_idx: the layer's number, for `inference_params`.
        d_conv: width of a causal convolution of queries, keys and values; 0: none.
        rotary_emb_dim: only 0.
        rotary_emb_base: accepted.
        rotary_emb_interleaved: accepted.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigError: heads do not divide, or rotary positions are asked for.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_heads_kv: int | None = None,
        head_dim: int | None = None,
        mlp_dim: int = 0,
        qkv_proj_bias: bool = True,
        out_proj_bias: bool = True,
        softmax_scale: float | None = None,
        causal: bool = False,
        layer_idx: int | None = None,
        d_conv: int = 0,
        rotary_emb_dim: int = 0,
        rotary_emb_base: float = 10000.0,
        rotary_emb_interleaved: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rotary_emb_dim:
            raise ConfigError(
                f"rotary_emb_dim: expected 0, got {rotary_emb_dim}; rotary positions are not offered here"
            )
        kv_heads = num_heads if num_heads_kv is None else num_heads_kv
        if num_heads % kv_heads or (head_dim is None and embed_dim % num_heads):
            raise ConfigError(
                f"num_heads: expected a divisor of embed_dim = {embed_dim} and a multiple of "
                f"num_heads_kv = {kv_heads}, got {num_heads}"
            )
        self.embed_dim, self.num_heads, self.num_heads_kv = embed_dim, num_heads, kv_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.softmax_scale, self.causal, self.layer_idx, self.d_conv = softmax_scale, causal, layer_idx, d_conv
        self.rotary_emb_dim = 0
        self.mlp_dim = math.ceil(mlp_dim / 256) * 256
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.qkv_dim = self.head_dim * (num_heads + 2 * kv_heads)
        self.in_proj = nn.Linear(embed_dim, self.qkv_dim + self.mlp_dim, bias=qkv_proj_bias, **options)
        if d_conv > 0:
            self.conv1d = CausalConv1d(self.qkv_dim, d_conv, **options)
        self.out_proj = nn.Linear(
            self.head_dim * num_heads + self.mlp_dim // 2, embed_dim, bias=out_proj_bias, **options
        )

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Room for keys and values (B, max_seqlen, 2, heads, width), and the convolution's state."""
        weight = self.out_proj.weight
        kept = weight.new_empty(
            batch_size, max_seqlen, 2, self.num_heads_kv, self.head_dim, dtype=dtype or weight.dtype
        )
        if self.d_conv == 0:
            return kept, None
        return kept, weight.new_zeros(batch_size, self.qkv_dim, self.d_conv, dtype=dtype or weight.dtype)

    def forward(self, x: Tensor, inference_params: Any = None) -> Tensor:
        """Attend over (B, L, C); with `inference_params` also over the tokens of earlier calls.

        Raises:
            ConfigError: the layer has no `layer_idx`.
            ShapeError: the shape is another, the batch is not the one that the sequence began with, or there are more
                tokens than room was made for.
        """
        check_tokens(x, (None, None, self.in_proj.in_features))
        offset: int = 0
        held: tuple[Tensor, Tensor | None] | None = None
        if inference_params is not None:
            offset = inference_params.seqlen_offset
            held = kept_states(self, inference_params, x.shape[0], dtype=x.dtype)
            if offset + x.shape[1] > held[0].shape[1]:
                raise ShapeError(
                    f"hidden_states: expected at most {held[0].shape[1]} tokens in all, which inference_params has "
                    f"room for, got {offset + x.shape[1]}; raise max_seqlen"
                )
        qkv, mlp = self.in_proj(x).split([self.qkv_dim, self.mlp_dim], dim=-1)
        if self.d_conv > 0:
            qkv = self._convolve(qkv, offset, None if held is None else held[1])
        heads = qkv.unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split([self.num_heads, self.num_heads_kv, self.num_heads_kv], dim=2)
        if held is not None:
            rows, end = held[0], offset + x.shape[1]
            with torch.no_grad():
                rows[:, offset:end] = torch.stack([k, v], dim=2)
            k, v = rows[:, :end].unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        mask = None
        if self.causal and offset:
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device)
            mask = seen.tril(k.shape[2] - q.shape[2])
        context = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=self.causal and not offset, scale=self.softmax_scale, enable_gqa=True
        )
        y = context.transpose(1, 2).flatten(2)
        if self.mlp_dim > 0:
            up, gate = mlp.chunk(2, dim=-1)
            y = torch.cat([y, up * F.silu(gate)], dim=-1)
        out: Tensor = self.out_proj(y)
        return out

    def _convolve(self, qkv: Tensor, offset: int, state: Tensor | None) -> Tensor:
        if offset and state is not None:
            step: Tensor = self.conv1d(qkv.mT, activation=None, conv_state=state).mT
            return step
        if state is not None:
            keep_last_inputs(state, qkv.mT)
        whole: Tensor = self.conv1d(qkv.mT, activation=None).mT
        return whole
