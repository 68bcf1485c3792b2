"""What stands between the large products of a model, in one pass over memory each.

On the CPU a kernel computes them and their gradients; everywhere else it is the plain text here. They are no ops of a
table: nobody names a backend for them, but `use_backend` and `WAVEMAMBA_BACKEND` with another name than "numba" leave
the kernels out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.ops.fused.function import Fused

__all__ = ["Fused", "gated_gelu", "rms_norm", "scale_and_add_rows", "scale_and_shift"]


def _over_tokens(vector: Tensor, like: Tensor) -> Tensor:
    """View a (B, C) vector so that it broadcasts over the token axes of `like`, (B, ..., C)."""
    return vector.view(vector.shape[0], *(1 for _ in range(like.dim() - 2)), vector.shape[-1])


def _scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(_over_tokens(shift, x), x, _over_tokens(1 + scale, x))


def _scale_and_add_rows(x: Tensor, scale: Tensor, base: Tensor) -> Tensor:
    return torch.addcmul(base, _over_tokens(scale, x), x)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def _gated_gelu(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return F.gelu(a, approximate="tanh") * b


def _is_a_vector_a_sample(vector: Tensor, x: Tensor) -> bool:
    return x.dim() >= 2 and vector.shape == (x.shape[0], x.shape[-1])


_NARROW = (torch.float32, torch.bfloat16)
scale_and_shift = Fused(
    _scale_and_shift,
    "scale_and_shift",
    lambda x, scale, shift: scale.shape == shift.shape and _is_a_vector_a_sample(scale, x),
    _NARROW,
)
"""`x * (1 + scale) + shift` of x (B, ..., C), and vectors (B, C): `(x, scale, shift)`."""

scale_and_add_rows = Fused(
    _scale_and_add_rows,
    "scale_and_add_rows",
    lambda x, scale, base: x.shape == base.shape and _is_a_vector_a_sample(scale, x),
    _NARROW,
)
"""`x * scale + base` of x and base (B, ..., C), and a vector (B, C): `(x, scale, base)`."""

rms_norm = Fused(_rms_norm, "rms_norm", lambda x, weight, eps: x.dim() >= 1 and weight.shape == x.shape[-1:])
"""`x / sqrt(mean(x^2) + eps) * weight` over the last axis of (..., C): `(x, weight, eps)`."""

gated_gelu = Fused(_gated_gelu, "gated_gelu", lambda x: x.dim() >= 1 and x.shape[-1] % 2 == 0, _NARROW)
"""`GELU_tanh(a) * b` with `a, b` the halves of x (..., 2 H): (..., H)."""
