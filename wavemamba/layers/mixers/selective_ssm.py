"""One direction of a Mamba-1 mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavemamba.dtypes import accumulation_dtype
from wavemamba.layers.mixers.convolved import NO_STEP, MambaState, initial_step_sizes, last_inputs, reset_convolution
from wavemamba.layers.mixers.segments import is_padding
from wavemamba.layers.weight_decay import UndecayedParameters
from wavemamba.ops import causal_conv1d, selective_scan


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
            delta = delta.masked_fill(is_padding(x.shape[1], lengths).unsqueeze(-1), NO_STEP)
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
        if order is not None:
            x = x.index_select(1, order[max(x.shape[1] - self.d_conv + 1, 0) :])
        return y, MambaState(last_inputs(x, before, self.d_conv - 1, lengths, documents), ssm)

    def reset_parameters(self) -> None:
        """`A = -(1..N)`, `D = 1`, and a `dt` bias whose softplus is log-uniform in [1e-3, 1e-1].

        Source: Gu and Dao, "Mamba", 2023, section 3.6, and their released code's constants.
        """
        if self.A_log.is_meta:
            return  # there are no values yet, and PyTorch imports its compiler for arithmetic on none
        reset_convolution(self.conv_weight, self.conv_bias)
        self.x_proj.reset_parameters()
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():
            wide, device = accumulation_dtype(self.dt_bias.dtype), self.dt_bias.device
            self.dt_bias.copy_(initial_step_sizes(self.inner, dtype=wide, device=device))
            steps = torch.arange(1, self.d_state + 1, dtype=wide, device=device)
            self.A_log.copy_(torch.log(steps).expand_as(self.A_log))
            self.D.fill_(1.0)

    def extra_repr(self) -> str:
        """The sizes, for `print`."""
        return f"{self.inner}, d_state={self.d_state}, d_conv={self.d_conv}, dt_rank={self.dt_rank}"
