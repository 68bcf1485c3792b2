"""Multi-head attention: of the tokens of a grid to each other, and to a context."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.errors import ConfigError

_NARROW = 64


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
    q, k, v = (t.unflatten(-1, (num_heads, t.shape[-1] // num_heads)).transpose(1, 2) for t in (q, k, v))
    if _trains_faster_in_float32(q):
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    else:
        y = F.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2).flatten(2)


def _trains_faster_in_float32(q: Tensor) -> bool:
    """Whether PyTorch's backward pass on the CPU, slow for narrow 16-bit heads, loses more than copies cost."""
    narrow = q.shape[-1] <= _NARROW and q.dtype in (torch.bfloat16, torch.float16)
    return narrow and q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad


def default_heads(dim: int, most: int) -> int:
    """The largest number of heads up to `most` that divides the width."""
    return max(heads for heads in range(1, most + 1) if dim % heads == 0)


def check_heads(dim: int, num_heads: int) -> None:
    """Raise `ConfigError` unless the heads divide the width."""
    if not isinstance(num_heads, int) or num_heads < 1 or dim % num_heads:
        raise ConfigError(
            f"num_heads: expected a divisor of the width {dim}, got {num_heads!r}; {default_heads(dim, 16)} is one"
        )


class SelfAttention(nn.Module):
    """Multi-head self-attention with bias: `Linear(attend(q, k, v))`.

    Args:
        dim: width C.
        num_heads: a divisor of `dim`.

    Raises:
        ConfigError: the heads do not divide the width.
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

    def extra_repr(self) -> str:
        """The heads, for `print`."""
        return f"num_heads={self.num_heads}"


class CrossAttention(nn.Module):
    """Attention of tokens to a context: `Linear(attend(q(x), k(context), v(context)))`, q, k and v without bias.

    Args:
        dim: width C.
        num_heads: heads.
        head_dim: width of a head.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.q, self.k, self.v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.proj = nn.Linear(inner, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map (B, L, C), with a context (B, T, C), to (B, L, C)."""
        y: Tensor = self.proj(attend(self.q(x), self.k(context), self.v(context), self.num_heads))
        return y
