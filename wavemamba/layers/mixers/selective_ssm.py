"""One direction of a Mamba-1 mixer, and the state that it carries along a sequence."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wavemamba.dtypes import accumulation_dtype
from wavemamba.layers.mixers.segments import is_padding
from wavemamba.layers.weight_decay import UndecayedParameters
from wavemamba.ops import causal_conv1d, selective_scan

_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4
_NO_STEP = -1e4  # softplus of it is zero, and every floating dtype holds it


class MambaState(NamedTuple):
    """What a mixer remembers between two steps of a sequence."""

    conv: Tensor
    """(B, d_conv - 1, E), the last inputs of the convolution, oldest first."""
    ssm: Tensor
    """(B, E, N), the state of the scan, in float32 (float64 for float64 inputs)."""


class SelectiveSSM(UndecayedParameters):
    """One direction of a mixer: causal convolution, input-dependent parameters, selective scan.

    Args:
        inner: width E.
        d_state: state size N of a channel.
        d_conv: width of the convolution.
        dt_rank: rank of the step-size projection.
    """

    undecayed = ("A_log", "D")

    def __init__(self, inner: int, d_state: int, d_conv: int, dt_rank: int) -> None:
        super().__init__()
        self.inner, self.d_state, self.d_conv, self.dt_rank = inner, d_state, d_conv, dt_rank
        self.conv_weight = nn.Parameter(torch.empty(inner, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.x_proj = nn.Linear(inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.empty(inner))
        self.reset_parameters()

    def forward(
        self,
        x: Tensor,
        z: Tensor,
        order: Tensor | None,
        state: MambaState | None = None,
        *,
        context: Tensor | None = None,
        return_state: bool = False,
        lengths: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, MambaState | None]:
        """Scan the sequence.

        Args:
            x: (B, L, E).
            z: (B, L, E), the gate.
            order: (L,) int64, the row that each step reads and writes; None: in turn.
            state: what stands before the first step; None: zero.
            context: (B, d_conv - 1, E), the same for the convolution alone, without a `state`.
            return_state: also return the state after the last step.
            lengths: (B,) int64, without an order: the steps from there on leave the state as it is.
            documents: (B, L) int64, nondecreasing along the steps: where it changes, the sequence starts anew.

        Returns:
            `y` (B, L, E), rows where they were in `x`, and the state, or None.
        """
        before, ssm = (context, None) if state is None else state
        u = causal_conv1d(
            x,
            self.conv_weight,
            self.conv_bias,
            activation="silu",
            initial_state=before,
            order=order,
            seq_idx=documents,
        )
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = self.dt_proj(dt)
        if return_state and lengths is not None:
            delta = delta.masked_fill(is_padding(x.shape[1], lengths).unsqueeze(-1), _NO_STEP)
        y, ssm = selective_scan(
            u,
            delta,
            -torch.exp(self.A_log.to(accumulation_dtype(self.A_log.dtype))),
            B,
            C,
            self.D,
            z,
            delta_bias=self.dt_bias,
            delta_softplus=True,
            initial_state=ssm,
            return_last_state=True,
            order=order,
            seq_idx=documents,
        )
        if not return_state:
            return y, None
        if before is None:
            before = x.new_zeros(x.shape[0], self.d_conv - 1, self.inner)
        if order is not None:
            x = x.index_select(1, order[max(x.shape[1] - self.d_conv + 1, 0) :])
        return y, MambaState(_last_inputs(x, before, lengths, documents), ssm)

    def reset_parameters(self) -> None:
        """`A = -(1..N)`, `D = 1`, and a `dt` bias whose softplus is log-uniform in [1e-3, 1e-1].

        Source: Gu and Dao, "Mamba", 2023, section 3.6, and their released code's constants.
        """
        if self.A_log.is_meta:
            return  # there are no values yet, and PyTorch imports its compiler for arithmetic on none
        bound = 1 / math.sqrt(self.d_conv)
        nn.init.uniform_(self.conv_weight, -bound, bound)
        nn.init.uniform_(self.conv_bias, -bound, bound)
        self.x_proj.reset_parameters()
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():
            wide = accumulation_dtype(self.dt_bias.dtype)
            uniform = torch.rand_like(self.dt_bias, dtype=wide)
            dt = torch.exp(uniform * (math.log(_DT_MAX) - math.log(_DT_MIN)) + math.log(_DT_MIN)).clamp(min=_DT_FLOOR)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
            steps = torch.arange(1, self.d_state + 1, dtype=wide, device=self.A_log.device)
            self.A_log.copy_(torch.log(steps).expand_as(self.A_log))
            self.D.fill_(1.0)

    def extra_repr(self) -> str:
        """The sizes, for `print`."""
        return f"{self.inner}, d_state={self.d_state}, d_conv={self.d_conv}, dt_rank={self.dt_rank}"


def _last_inputs(x: Tensor, context: Tensor, lengths: Tensor | None, documents: Tensor | None) -> Tensor:
    """What the convolution remembers after a sequence: its last inputs, of the last document alone.

    Args:
        x: (B, L, E), the inputs in the sequence of the steps.
        context: (B, d_conv - 1, E), the inputs before the first step.
        lengths: (B,) int64, how many steps count; None: all. The op that returns this state knows no padding.
        documents: (B, L) int64, the document of every step, or None.

    Returns:
        (B, d_conv - 1, E).
    """
    kept = context.shape[1]
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
