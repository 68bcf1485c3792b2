"""Multi-head attention over the tokens of a grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.errors import ConfigError


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """`softmax(q k^T / sqrt(C / heads)) v`, head by head.

    Args:
        q: (B, L, C).
        k: (B, M, C).
        v: (B, M, C).
        num_heads: a divisor of C.

    Returns:
        (B, L, C).
    """
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def check_heads(dim: int, num_heads: int) -> None:
    """Raise `ConfigError` unless the heads divide the width."""
    if num_heads < 1 or dim % num_heads:
        raise ConfigError(f"num_heads: expected a divisor of the width {dim}, got {num_heads}")


class SelfAttention(nn.Module):
    """Multi-head self-attention with bias: `Linear(attend(q, k, v))`.

    Args:
        dim: width C.
        num_heads: a divisor of `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of (B, L, C) -> (B, L, C)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        y: Tensor = self.proj(attend(q, k, v, self.num_heads))
        return y
