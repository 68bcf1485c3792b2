"""The Mamba-1 mixer, with any scan order and a conditioning that works."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from wavemamba.checks import expect_shape
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.ops import causal_conv1d, selective_scan
from wavemamba.scans import ScanOrder

Conditioning = Literal["none", "conv_state"]
CONDITIONINGS: tuple[Conditioning, ...] = ("none", "conv_state")
_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4


class SelectiveSSM(nn.Module):
    """One direction of a mixer: causal convolution, input-dependent parameters, selective scan.

    Args:
        inner: width E.
        d_state: state size N of a channel.
        d_conv: width of the convolution.
        dt_rank: rank of the step-size projection.
    """

    def __init__(self, inner: int, d_state: int, d_conv: int, dt_rank: int) -> None:
        super().__init__()
        self.d_state, self.dt_rank = d_state, dt_rank
        self.conv_weight = nn.Parameter(torch.empty(inner, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.x_proj = nn.Linear(inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.empty(inner))
        self.reset_parameters()

    def forward(self, x: Tensor, z: Tensor, order: Tensor | None, conv_state: Tensor | None) -> Tensor:
        """Scan the sequence.

        Args:
            x: (B, L, E).
            z: (B, L, E), the gate.
            order: (L,) int64, the row that each step reads and writes; None: in turn.
            conv_state: (B, d_conv - 1, E), what the convolution sees before the first step; None: zero.

        Returns:
            (B, L, E), rows where they were in `x`.
        """
        x = causal_conv1d(x, self.conv_weight, self.conv_bias, activation="silu", initial_state=conv_state, order=order)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return selective_scan(
            x,
            self.dt_proj(dt),
            -torch.exp(self.A_log.to(accumulation_dtype(self.A_log.dtype))),
            B,
            C,
            self.D,
            z,
            delta_bias=self.dt_bias,
            delta_softplus=True,
            order=order,
        )

    def reset_parameters(self) -> None:
        """`A = -(1..N)`, `D = 1`, and a `dt` bias whose softplus is log-uniform in [1e-3, 1e-1].

        Source: Gu and Dao, "Mamba", 2023, section 3.6, and their released code's constants.
        """
        bound = 1 / math.sqrt(self.conv_weight.shape[1])
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


class MambaMixer(nn.Module):
    """Mamba-1 as a sequence mixer, (B, L, C) -> (B, L, C).

    `x, z = in_proj(tokens)`; `y = scan(SiLU(conv(x)))` gated by `SiLU(z)`; `out_proj(y)`. A second direction, where
    asked, has its own convolution and parameters, runs from the last step to the first, and is added before
    `out_proj`.

    Args:
        dim: width C.
        d_state: state size N of a channel.
        d_conv: width of the causal convolution.
        expand: inner width E as a multiple of C.
        dt_rank: rank of the step-size projection; "auto": C / 16, rounded up.
        bidirectional: scan backwards too.
        cond_dim: width of the condition; needed for "conv_state" alone.
        conditioning: "none"; or "conv_state": the projected condition fills the convolution's `d_conv - 1` positions
            before the first step.

    Raises:
        ConfigError: a size is no int >= 1, or the conditioning is unknown or lacks `cond_dim`.

    Source: Gu and Dao, "Mamba", 2023, section 3.4; backward direction: Zhu et al., "Vision Mamba", 2024.
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        bidirectional: bool = False,
        cond_dim: int | None = None,
        conditioning: Conditioning = "none",
    ) -> None:
        super().__init__()
        if conditioning not in CONDITIONINGS:
            raise ConfigError(f"conditioning: expected one of {', '.join(CONDITIONINGS)}, got {conditioning!r}")
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        sizes = {"dim": dim, "d_state": d_state, "d_conv": d_conv, "expand": expand, "dt_rank": rank}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ConfigError(f"{name}: expected an int >= 1, got {size!r}")
        self.dim, self.inner, self.d_conv = dim, expand * dim, d_conv
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.directions = nn.ModuleList(
            SelectiveSSM(self.inner, d_state, d_conv, rank) for _ in range(2 if bidirectional else 1)
        )
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        self.cond_proj: nn.Linear | None = None
        if conditioning == "conv_state":
            if cond_dim is None:
                raise ConfigError("cond_dim: expected the condition's width with conditioning='conv_state', got None")
            self.cond_proj = nn.Linear(cond_dim, self.inner)

    def forward(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        *,
        order: Tensor | ScanOrder | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Mix the tokens.

        Args:
            x: (B, L, C).
            cond: (B, cond_dim), used with "conv_state" alone.
            order: the row that each step of the scan reads and writes: a permutation (L,) int64, or a `ScanOrder`,
                which needs `grid`; None: in turn. Rows of the result stay where they were in `x`.
            grid: (H, W) with `H * W = L`, for a `ScanOrder`.

        Returns:
            (B, L, C).

        Raises:
            ShapeError: a size does not fit, the grid or the condition is missing.
        """
        expect_shape("x", x, (None, None, self.dim), "(B, L, C)", "channels come last")
        rows = _resolve_order(order, grid, x)
        inner, gate = self.in_proj(x).chunk(2, dim=-1)
        conv_state = self._conv_state(cond, x)
        y = self.directions[0](inner, gate, rows, conv_state)
        if len(self.directions) == 2:
            if rows is None:
                rows = torch.arange(x.shape[1], device=x.device)
            y = y + self.directions[1](inner, gate, rows.flip(0), conv_state)
        out: Tensor = self.out_proj(y)
        return out

    def _conv_state(self, cond: Tensor | None, x: Tensor) -> Tensor | None:
        if self.cond_proj is None:
            return None
        if cond is None:
            raise ShapeError(
                "cond: expected (B, cond_dim) with conditioning='conv_state', got None; pass the condition"
            )
        expect_shape(
            "cond", cond, (x.shape[0], self.cond_proj.in_features), "(B, cond_dim)", "pass one vector a sample"
        )
        return self.cond_proj(cond).unsqueeze(1).expand(-1, self.d_conv - 1, -1)


def _resolve_order(order: Tensor | ScanOrder | None, grid: tuple[int, int] | None, x: Tensor) -> Tensor | None:
    if not isinstance(order, ScanOrder):
        return order
    if grid is None or grid[0] * grid[1] != x.shape[1]:
        raise ShapeError(
            f"grid: expected (H, W) with H * W = {x.shape[1]} for {order}, got {grid}; pass the grid of the tokens"
        )
    return None if order.is_identity else order.permutation(*grid, device=x.device)
