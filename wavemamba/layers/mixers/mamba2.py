"""The Mamba-2 mixer: state space duality, in any scan order, with all that the Mamba-1 mixer has."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.checks import expect_size
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.layers.mixers.convolved import (
    NO_STEP,
    Conditioning,
    ConvolvedMixer,
    MambaState,
    initial_step_sizes,
    last_inputs,
    reset_convolution,
)
from wavemamba.layers.mixers.segments import Walk
from wavemamba.layers.norm import RMSNorm
from wavemamba.layers.weight_decay import UndecayedParameters
from wavemamba.ops import causal_conv1d, ssd_scan

_WIDEST_HEAD = 64
_RATES = (1.0, 16.0)
"""Decay rates at the start."""


class Mamba2Mixer(ConvolvedMixer):
    """Mamba-2 as a sequence mixer, (B, L, C) -> (B, L, C).

        z, (x, B, C), dt = in_proj(tokens);  x, B, C = SiLU(conv(x, B, C))
        y = ssd_scan(x, softplus(dt + dt_bias), -exp(A_log), B, C, D);  out_proj(RMSNorm(y * SiLU(z)))

    All heads share B and C, and a head decays as one. A second direction, where asked, reads the same projection with
    a convolution, decay rates, step sizes and skip of its own, runs from the last step to the first, and is added
    before the gate.

    Args:
        dim: width C.
        d_state: state size N of a channel.
        d_conv: width of the causal convolution.
        expand: inner width E as a multiple of C.
        head_dim: width P of a head, a divisor of E; None: the largest up to 64.
        bidirectional: scan backwards too.
        cond_dim: width of the condition, with "conv_state" alone.
        conditioning: "none"; or "conv_state": the projected condition fills the convolution's `d_conv - 1` positions
            before the first step.

    Raises:
        ConfigError: a size is no int >= 1, the heads do not divide the inner width, the conditioning is unknown, has no
            effect or lacks `cond_dim`, or there is a `cond_dim` and no conditioning.

    Source: Dao and Gu, "Transformers are SSMs", 2024, section 7; `compat.from_mamba2` reads mamba-ssm's parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int | None = None,
        bidirectional: bool = False,
        cond_dim: int | None = None,
        conditioning: Conditioning = "none",
    ) -> None:
        sizes: dict[str, Any] = {"dim": dim, "d_state": d_state, "expand": expand}
        for name, size in sizes.items():
            expect_size(name, size)
        inner = expand * dim
        widest = max(width for width in range(1, _WIDEST_HEAD + 1) if inner % width == 0)
        head_dim = widest if head_dim is None else head_dim
        expect_size("head_dim", head_dim)
        if inner % head_dim:
            raise ConfigError(f"head_dim: expected a divisor of the inner width {inner}, got {head_dim}")
        super().__init__(
            dim,
            inner + 2 * d_state,
            d_conv,
            bidirectional=bidirectional,
            cond_dim=cond_dim,
            conditioning=conditioning,
        )
        self.inner, self.d_state, self.head_dim, self.heads = inner, d_state, head_dim, inner // head_dim
        self.in_proj = nn.Linear(dim, inner + self.conv_channels + self.heads, bias=False)
        self.directions = nn.ModuleList(
            HeadwiseSSM(inner, d_state, d_conv, self.heads) for _ in range(2 if bidirectional else 1)
        )
        self.norm = RMSNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.cond_proj = self.condition_projection()

    def mix(
        self, x: Tensor, walk: Walk, cond: Tensor | None, state: MambaState | None, return_state: bool
    ) -> tuple[Tensor, MambaState | None]:
        """See `SequenceMixer.mix`."""
        columns = self.in_proj(walk.visit(x))
        z, xBC, dt = columns.split([self.inner, self.conv_channels, self.heads], dim=-1)
        context = self.context(cond, state, x.shape[0])
        if state is not None:
            context = state.conv
        forwards, *backwards = self.directions
        y, last = forwards(xBC, dt, context, None if state is None else state.ssm, walk, return_state)
        for direction in backwards:
            y = y + walk.turn(direction(walk.turn(xBC), walk.turn(dt), context, None, walk, False)[0])
        wide = accumulation_dtype(y.dtype)
        out: Tensor = self.out_proj(self.norm(y.to(wide) * F.silu(z.to(wide)), y.dtype))
        return walk.leave(out), last

    def state_shapes(self, batch: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        """See `SequenceMixer.state_shapes`."""
        return {
            "conv": ((batch, self.d_conv - 1, self.conv_channels), "(B, d_conv - 1, E + 2 N)"),
            "ssm": ((batch, self.heads, self.head_dim, self.d_state), "(B, H, P, N)"),
        }

    def extra_repr(self) -> str:
        """The options, for `print`."""
        options = f"{self.dim}, d_state={self.d_state}, d_conv={self.d_conv}, expand={self.inner // self.dim}, "
        options += f"head_dim={self.head_dim}" + (", bidirectional=True" if self.bidirectional else "")
        return options + (f", cond_dim={self.cond_dim}, conditioning='conv_state'" if self.takes_condition else "")


class HeadwiseSSM(UndecayedParameters):
    """One direction of a Mamba-2 mixer: causal convolution and state-space-dual scan.

    Args:
        inner: width E.
        d_state: state size N of a channel.
        d_conv: width of the convolution.
        heads: heads H, a divisor of E.
    """

    undecayed = ("dt_bias", "A_log", "D")

    def __init__(self, inner: int, d_state: int, d_conv: int, heads: int) -> None:
        super().__init__()
        self.inner, self.d_state, self.d_conv, self.heads = inner, d_state, d_conv, heads
        self.conv_weight = nn.Parameter(torch.empty(inner + 2 * d_state, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(inner + 2 * d_state))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def forward(
        self,
        xBC: Tensor,
        dt: Tensor,
        context: Tensor | None,
        ssm: Tensor | None,
        walk: Walk,
        return_state: bool,
    ) -> tuple[Tensor, MambaState | None]:
        """Scan the steps.

        Args:
            xBC: (B, L, E + 2 N), inputs, B and C before the convolution.
            dt: (B, L, H).
            context: (B, d_conv - 1, E + 2 N), what the convolution saw before the first step; None: zero.
            ssm: (B, H, P, N), the state before the first step; None: zero.
            walk: padding and documents.
            return_state: also return the state after the last step.

        Returns:
            (B, L, E), and the state, or None.
        """
        u = causal_conv1d(
            xBC,
            self.conv_weight,
            self.conv_bias,
            activation="silu",
            initial_state=context,
            seq_idx=walk.documents,
        )
        x, B, C = u.split([self.inner, self.d_state, self.d_state], dim=-1)
        if return_state and walk.padding is not None:
            dt = dt.masked_fill(walk.padding.unsqueeze(-1), NO_STEP)
        A = -torch.exp(self.A_log.to(accumulation_dtype(self.A_log.dtype)))
        options: dict[str, Any] = {"dt_bias": self.dt_bias, "dt_softplus": True}
        options |= {"initial_state": ssm, "seq_idx": walk.documents, "return_last_state": return_state}
        values = x.unflatten(-1, (self.heads, -1))
        found = ssd_scan(values, dt, A, B.unsqueeze(2), C.unsqueeze(2), self.D, **options)
        if not return_state:
            return found.flatten(2), None
        conv = last_inputs(xBC, context, self.d_conv - 1, walk.lengths, walk.documents)
        return found[0].flatten(2), MambaState(conv, found[1])

    def reset_parameters(self) -> None:
        """`A` uniform in -(1 .. 16), `D = 1`, and a `dt` bias whose softplus is log-uniform in [1e-3, 1e-1].

        Source: the start of mamba-ssm's `Mamba2`.
        """
        if self.A_log.is_meta:
            return  # there are no values yet, and PyTorch imports its compiler for arithmetic on none
        reset_convolution(self.conv_weight, self.conv_bias)
        with torch.no_grad():
            wide, device = accumulation_dtype(self.dt_bias.dtype), self.dt_bias.device
            self.dt_bias.copy_(initial_step_sizes(self.heads, dtype=wide, device=device))
            self.A_log.copy_(torch.empty(self.heads, dtype=wide, device=device).uniform_(*_RATES).log())
            self.D.fill_(1.0)

    def extra_repr(self) -> str:
        """The sizes, for `print`."""
        return f"{self.inner}, d_state={self.d_state}, d_conv={self.d_conv}, heads={self.heads}"
