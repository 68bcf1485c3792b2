"""`causal_conv1d.causal_conv1d_varlen`: the last inputs of packed sequences."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref"]


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last `state_len` inputs of every sequence, zeros before its first one.

    Args:
        x: (T, D), the steps of all sequences one after the other.
        cu_seqlens: (B + 1,), where each sequence begins, and T.
        state_len: inputs to keep.

    Returns:
        (B, D, state_len), oldest first.
    """
    ends, starts = cu_seqlens[1:].long(), cu_seqlens[:-1].long()
    steps = ends.unsqueeze(1) - state_len + torch.arange(state_len, device=x.device)
    own = steps >= starts.unsqueeze(1)
    if x.shape[0] == 0:
        return x.new_zeros(len(ends), x.shape[1], state_len)
    rows = x.detach()[steps.clamp(0, x.shape[0] - 1)]
    return torch.where(own.unsqueeze(2), rows, 0).transpose(1, 2)


causal_conv1d_varlen_states_ref = causal_conv1d_varlen_states
