"""`causal_conv1d.causal_conv1d_interface`: the causal depthwise convolution, (B, D, L) layout."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.errors import ConfigError, ShapeError
from wavemamba.ops import causal_conv1d, use_backend

__all__ = ["causal_conv1d_fn", "causal_conv1d_ref", "causal_conv1d_update", "causal_conv1d_update_ref"]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """Causal depthwise convolution; see `wavemamba.ops.causal_conv1d` for the equation.

    Args:
        x: (B, D, L).
        weight: (D, width).
        bias: (D,).
        seq_idx: (B, L), the sequence that each step belongs to; steps see only their own. Negative: padding, whose
            result is zero.
        initial_states: (B, D, width - 1), the inputs before the first step.
        return_final_states: also return the last `width - 1` inputs.
        final_states_out: (B, D, width - 1), where these are written.
        activation: None, "silu" or "swish".

    Returns:
        (B, D, L) in the dtype of `x`; with `return_final_states` also (B, D, width - 1).
    """
    silu = _check_activation(activation)
    y = causal_conv1d(
        x.mT,
        weight,
        bias,
        activation="silu" if silu else None,
        initial_state=None if initial_states is None else initial_states.mT,
        seq_idx=seq_idx,
    ).mT
    if seq_idx is not None:
        y = torch.where((seq_idx >= 0).unsqueeze(1), y, 0)
    return _with_final_states(y, x, weight.shape[1], initial_states, return_final_states, final_states_out)


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """`causal_conv1d_fn` by PyTorch's own convolution, in the dtype of the weight."""
    silu = _check_activation(activation)
    y = F.conv1d(_padded(x, weight, initial_states), weight.unsqueeze(1), bias, groups=weight.shape[0])
    y = (F.silu(y) if silu else y).to(x.dtype)
    return _with_final_states(y, x, weight.shape[1], initial_states, return_final_states, final_states_out)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The next steps of a convolution whose last inputs are in `conv_state`, which is updated in place.

    Args:
        x: (B, D), or (B, D, S) for S steps.
        conv_state: (B, D, M) with M >= width - 1, the last inputs, oldest first; with `cache_seqlens` a ring.
        weight: (D, width).
        bias: (D,).
        activation: None, "silu" or "swish".
        cache_seqlens: (B,), how many inputs each sample has seen: the ring is written from place
            `cache_seqlens % M` on.
        conv_state_indices: (B,), the row of `conv_state` that belongs to each sample; negative: padding, whose result
            is zero.

    Returns:
        The shape of `x`.

    Raises:
        ShapeError: the state holds fewer than `width - 1` inputs.
    """
    silu = _check_activation(activation)
    steps = x if x.dim() == 3 else x.unsqueeze(-1)
    before, room = weight.shape[1] - 1, conv_state.shape[-1]
    if room < before:
        raise ShapeError(
            f"conv_state: expected (B, D, M) with M >= width - 1 = {before}, got {tuple(conv_state.shape)}"
        )
    places = None if conv_state_indices is None else conv_state_indices.long()
    rows = conv_state if places is None else conv_state[places.clamp(min=0)]
    if cache_seqlens is None:
        seen = torch.cat([rows, steps.to(rows.dtype)], dim=-1)
        context, kept = seen[..., room - before : room], seen[..., -room:]
    else:
        context = rows.gather(2, _ring(cache_seqlens - before, before, rows))
        kept = rows.scatter(2, _ring(cache_seqlens, steps.shape[-1], rows), steps.to(rows.dtype))
    y = causal_conv1d(
        steps.mT, weight, bias, activation="silu" if silu else None, initial_state=context.to(steps.dtype).mT
    ).mT
    with torch.no_grad():
        if places is None:
            conv_state.copy_(kept)
        else:
            own = places >= 0
            conv_state[places[own]] = kept[own]
    if places is not None:
        y = torch.where((places >= 0)[:, None, None], y, 0)
    return y if x.dim() == 3 else y.squeeze(-1)


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d_update` on the plain loop."""
    with use_backend("reference"):
        return causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens)


def _check_activation(activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise ConfigError(f"activation: expected None, 'silu' or 'swish', got {activation!r}")
    return activation is not None


def _padded(x: Tensor, weight: Tensor, initial_states: Tensor | None) -> Tensor:
    x = x.to(weight.dtype)
    if initial_states is None:
        return F.pad(x, (weight.shape[1] - 1, 0))
    return torch.cat([initial_states.to(weight.dtype), x], dim=-1)


def _with_final_states(
    y: Tensor, x: Tensor, width: int, initial_states: Tensor | None, wanted: bool, target: Tensor | None
) -> Any:
    if not wanted:
        return y
    seen = x if initial_states is None else torch.cat([initial_states.to(x.dtype), x], dim=-1)
    padded = F.pad(seen, (width - 1, 0))
    final = padded[..., padded.shape[-1] - (width - 1) :]
    if target is not None:
        with torch.no_grad():
            target.copy_(final)
        final = target
    return y, final


def _ring(start: Tensor, count: int, rows: Tensor) -> Tensor:
    """The `count` places from `start` on in a ring of M, for every channel: (B, D, count)."""
    places = start.long().unsqueeze(1) + torch.arange(count, device=start.device)
    return torch.remainder(places, rows.shape[-1]).unsqueeze(1).expand(-1, rows.shape[1], -1)
