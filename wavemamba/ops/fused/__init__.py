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

__all__ = ["Fused", "gated_gelu", "rms_norm"]


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def _gated_gelu(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return F.gelu(a, approximate="tanh") * b


rms_norm = Fused(_rms_norm, "rms_norm", lambda x, weight, eps: x.dim() >= 1 and weight.shape == x.shape[-1:])
"""`x / sqrt(mean(x^2) + eps) * weight` over the last axis of (..., C): `(x, weight, eps)`."""

gated_gelu = Fused(
    _gated_gelu,
    "gated_gelu",
    lambda x: x.dim() >= 1 and x.shape[-1] % 2 == 0,
    (torch.float32, torch.bfloat16),
)
"""`GELU_tanh(a) * b` with `a, b` the halves of x (..., 2 H): (..., H)."""
