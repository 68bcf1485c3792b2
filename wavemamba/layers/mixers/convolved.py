"""What the Mamba mixers share: a short causal convolution before the scan, its state, a condition that enters it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from wavemamba.checks import expect_floating, expect_shape, expect_size
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.layers.mixers.sequence_mixer import SequenceMixer
from wavemamba.names import choose

Conditioning = Literal["none", "conv_state"]
CONDITIONINGS: tuple[Conditioning, ...] = ("none", "conv_state")
NO_STEP = -1e4
"""A step size before its softplus that is zero after it, in every floating dtype."""


class MambaState(NamedTuple):
    """What a Mamba mixer remembers between two steps of a sequence."""

    conv: Tensor
    """(B, d_conv - 1, channels), the last inputs of the convolution, oldest first."""
    ssm: Tensor
    """The state of the scan, in float32 (float64 for float64 inputs): (B, E, N), of Mamba-2 (B, H, P, N)."""


class ConvolvedMixer(SequenceMixer[MambaState]):
    """Base of a mixer whose convolution can be conditioned.

    Args:
        dim: width C.
        channels: what the convolution runs over.
        d_conv: its width.
        bidirectional: see `SequenceMixer`.
        cond_dim: width of the condition, with "conv_state" alone.
        conditioning: "none"; or "conv_state": the projected condition fills the convolution's `d_conv - 1` positions
            before the first step.

    Raises:
        ConfigError: a size is no int >= 1, the conditioning is unknown, has no effect or lacks `cond_dim`, or there is
            a `cond_dim` and no conditioning.
    """

    state_class = MambaState
    cond_proj: nn.Linear | None

    def __init__(
        self,
        dim: int,
        channels: int,
        d_conv: int,
        *,
        bidirectional: bool,
        cond_dim: int | None,
        conditioning: Conditioning,
    ) -> None:
        super().__init__(dim, bidirectional=bidirectional)
        self.takes_condition = choose("conditioning", conditioning, CONDITIONINGS) == "conv_state"
        expect_size("d_conv", d_conv)
        self.conv_channels, self.d_conv, self.cond_dim = channels, d_conv, cond_dim
        if not self.takes_condition and cond_dim is not None:
            raise ConfigError(
                f"cond_dim: expected None with conditioning='none', got {cond_dim}; choose conditioning='conv_state', "
                "or leave it out"
            )
        if self.takes_condition and cond_dim is None:
            raise ConfigError("cond_dim: expected the condition's width with conditioning='conv_state', got None")
        if self.takes_condition and d_conv == 1:
            raise ConfigError(
                "d_conv: expected at least 2 with conditioning='conv_state', got 1; a convolution of width 1 sees "
                "nothing before the first step"
            )
        if cond_dim is not None:
            expect_size("cond_dim", cond_dim)

    def condition_projection(self) -> nn.Linear | None:
        """A new layer from the condition to the convolution's channels, where there is a condition."""
        return None if self.cond_dim is None else nn.Linear(self.cond_dim, self.conv_channels)

    def initial_state(
        self,
        batch: int,
        cond: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> MambaState:
        """The state before the first token.

        Args:
            batch: samples B.
            cond: (B, cond_dim), with "conv_state" alone, where the state holds it.
            dtype: of the inputs to come; None: the parameters'.
            device: of the inputs to come; None: the parameters'.

        Raises:
            ShapeError: a condition is missing, not wanted, or of the wrong size.
            ConfigError: the mixer has two directions.
        """
        zero = super().initial_state(batch, dtype=dtype, device=device)
        context = self.context(cond, None, batch)
        if context is None:
            context = zero.conv.to(self.kind_of_inputs(dtype, device)[0])
        return MambaState(context, zero.ssm)

    def context(self, cond: Tensor | None, state: MambaState | None, batch: int) -> Tensor | None:
        """(B, d_conv - 1, channels), the projected condition as the convolution's inputs before the first step."""
        if self.cond_proj is None or state is not None:
            none = "the mixer has conditioning='none'" if self.cond_proj is None else "the state holds it"
            self.expect_no_condition(cond, none)
            return None
        if cond is None:
            raise ShapeError("cond: expected (B, cond_dim) with conditioning='conv_state', got None; pass it")
        expect_shape("cond", cond, (batch, self.cond_dim), "(B, cond_dim)", "pass one vector a sample")
        expect_floating("cond", cond)
        context: Tensor = self.cond_proj(cond)
        return context.unsqueeze(1).expand(-1, self.d_conv - 1, -1)

    def expect_meaning(
        self, state: MambaState | None, return_state: bool, lengths: Tensor | None, seq_idx: Tensor | None
    ) -> None:
        """See `SequenceMixer.expect_meaning`."""
        super().expect_meaning(state, return_state, lengths, seq_idx)
        if self.takes_condition and seq_idx is not None:
            raise ConfigError(
                "seq_idx: expected conditioning='none', got 'conv_state', whose one condition a sample would reach the "
                "first document alone; pad the documents and pass lengths"
            )


def reset_convolution(weight: Tensor, bias: Tensor) -> None:
    """Uniform in +- 1 / sqrt(width), as `nn.Conv1d` starts.

    Args:
        weight: (channels, width).
        bias: (channels,).
    """
    bound = 1 / math.sqrt(weight.shape[1])
    nn.init.uniform_(weight, -bound, bound)
    nn.init.uniform_(bias, -bound, bound)


def initial_step_sizes(
    count: int,
    low: float = 1e-3,
    high: float = 1e-1,
    floor: float = 1e-4,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What softplus turns into log-uniform step sizes in [low, high], none below `floor`: (count,).

    Source: Gu and Dao, "Mamba", 2023, section 3.6, and their released code's constants.
    """
    uniform = torch.rand(count, device=device, dtype=dtype)
    sizes = torch.exp(uniform * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
    return sizes + torch.log(-torch.expm1(-sizes))


def last_inputs(
    x: Tensor, context: Tensor | None, kept: int, lengths: Tensor | None, documents: Tensor | None
) -> Tensor:
    """What the convolution remembers after a sequence: its last inputs, of the last document alone.

    Args:
        x: (B, L, channels), the inputs in the sequence of the steps.
        context: (B, kept, channels), the inputs before the first step; None: zero.
        kept: how many it remembers, `d_conv - 1`.
        lengths: (B,) int64, how many steps count; None: all. The op that returns this state knows no padding.
        documents: (B, L) int64, the document of every step, or None.

    Returns:
        (B, kept, channels).
    """
    if context is None:
        context = x.new_zeros(x.shape[0], kept, x.shape[2])
    seen = torch.cat([context.to(x.dtype), x], dim=1)
    if lengths is None:
        tail = seen[:, seen.shape[1] - kept :]
        places = None
    else:
        places = lengths[:, None] + torch.arange(kept, device=x.device)
        tail = seen.gather(1, places.unsqueeze(-1).expand(-1, -1, seen.shape[2]))
    if documents is None:
        return tail
    which = torch.cat([documents[:, :1].expand(-1, kept), documents], dim=1)
    which = which[:, which.shape[1] - kept :] if places is None else which.gather(1, places)
    return torch.where((which == which[:, -1:]).unsqueeze(-1), tail, 0)
