"""What the mixers here share: layers with mamba-ssm's parameter names, called as modules, and their states.

Code that wraps a layer (low-rank adapters, offloading, pruning) sees every call of it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.compat.causal_conv1d import causal_conv1d_update
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.ops import causal_conv1d


class CausalConv1d(nn.Conv1d):
    """`nn.Conv1d`, depthwise and padded on both sides as mamba-ssm builds it, which can also run causally.

    Args:
        channels: D.
        width: taps.
        bias: have one.
        options: device and dtype.
    """

    def __init__(self, channels: int, width: int, bias: bool = True, **options: Any) -> None:
        super().__init__(channels, channels, width, groups=channels, padding=width - 1, bias=bias, **options)

    def forward(
        self,
        input: Tensor,
        *,
        activation: str | None = "none",
        conv_state: Tensor | None = None,
        order: Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> Tensor:
        """Convolve (B, D, L): as `nn.Conv1d` does, or causally where an activation (None or "silu") is named.

        Args:
            input: (B, D, L).
            activation: "none": what `nn.Conv1d` gives, (B, D, L + width - 1); else (B, D, L).
            conv_state: (B, D, width), the last inputs; the call is then a step, and they are updated.
            order: (L,), the row that each step reads and writes.
            seq_idx: (B, L), the sequence of each step.
        """
        if activation == "none":
            return super().forward(input)
        weight = self.weight.squeeze(1)
        if conv_state is not None:
            return causal_conv1d_update(input, conv_state, weight, self.bias, activation)
        silu: Literal["silu"] | None = None if activation is None else "silu"
        return causal_conv1d(input.mT, weight, self.bias, activation=silu, order=order, seq_idx=seq_idx).mT


class StepSize(nn.Linear):
    """`nn.Linear` whose bias is added in float32: a step size of 0.001 does not survive a sum in bfloat16."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., R) to (..., D) in float32 (float64 for float64 inputs)."""
        product = F.linear(input, self.weight)
        wide = accumulation_dtype(product.dtype)
        return product.to(wide) if self.bias is None else product.to(wide) + self.bias.to(wide)


ONE_BY_ONE = "a sequence that has begun goes on one token at a time"


def check_tokens(hidden_states: Tensor, expected: tuple[int | None, ...], remedy: str = "") -> None:
    """Compare the tokens' shape with the one expected, where None stands for any size.

    Raises:
        ShapeError: it is another.
    """
    shape = hidden_states.shape
    if len(shape) != len(expected) or any(size not in (None, n) for n, size in zip(shape, expected, strict=True)):
        sizes = ", ".join("any" if size is None else str(size) for size in expected)
        raise ShapeError(f"hidden_states: expected ({sizes}), got {tuple(shape)}" + (f"; {remedy}" if remedy else ""))


def kept_states(
    module: Any, inference_params: Any, batch: int, fresh: bool = False, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """A layer's states in `inference_params`, made by its `allocate_inference_cache` where they are missing.

    A sequence that begins (`seqlen_offset` 0) with another batch gets new ones.

    Raises:
        ConfigError: the layer has no `layer_idx`.
        ShapeError: the batch is not the one that the sequence began with.
    """
    if module.layer_idx is None:
        raise ConfigError("layer_idx: expected the layer's number with inference_params, got None; pass layer_idx")
    held = inference_params.key_value_memory_dict
    begins = inference_params.seqlen_offset == 0
    if module.layer_idx not in held or (begins and held[module.layer_idx][0].shape[0] != batch):
        held[module.layer_idx] = module.allocate_inference_cache(batch, inference_params.max_seqlen, dtype=dtype)
    states: tuple[Tensor, Tensor] = held[module.layer_idx]
    if states[0].shape[0] != batch:
        raise ShapeError(
            f"hidden_states: expected a batch of {states[0].shape[0]}, which the sequence began with, got {batch}; "
            "begin another one with InferenceParams.reset"
        )
    if fresh:
        for state in states:
            state.zero_()
    return states


def keep_last_inputs(conv_state: Tensor, x: Tensor) -> None:
    """Write the last inputs of (B, D, L) to a state (B, D, M), zeros before the first one."""
    room = conv_state.shape[-1]
    with torch.no_grad():
        conv_state.copy_(F.pad(x, (room, 0))[..., -room:])
