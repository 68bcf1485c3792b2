"""The Mamba-1 mixer: any scan order, states in and out, padding and packed sequences, a conditioning that works."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from wavemamba.checks import expect_floating, expect_shape, expect_size
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.layers.mixers.protocol import resolve_order
from wavemamba.layers.mixers.segments import Segments, gather_rows, read_segments, scatter_rows
from wavemamba.layers.mixers.selective_ssm import MambaState, SelectiveSSM
from wavemamba.names import choose
from wavemamba.scans import ScanOrder, expect_permutation, reverse_permutation

Conditioning = Literal["none", "conv_state"]
CONDITIONINGS: tuple[Conditioning, ...] = ("none", "conv_state")


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
        cond_dim: width of the condition, with "conv_state" alone.
        conditioning: "none"; or "conv_state": the projected condition fills the convolution's `d_conv - 1` positions
            before the first step.

    Raises:
        ConfigError: a size is no int >= 1, the conditioning is unknown, has no effect or lacks `cond_dim`, or there is
            a `cond_dim` and no conditioning.

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
        conditioned = choose("conditioning", conditioning, CONDITIONINGS) == "conv_state"
        expect_size("dim", dim)
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        sizes: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "dt_rank": rank}
        for name, size in sizes.items():
            expect_size(name, size)
        self.dim, self.inner, self.d_state, self.d_conv = dim, expand * dim, d_state, d_conv
        self.bidirectional, self.cond_dim, self.takes_condition = bidirectional, cond_dim, conditioned
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.directions = nn.ModuleList(
            SelectiveSSM(self.inner, d_state, d_conv, rank) for _ in range(2 if bidirectional else 1)
        )
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        self.cond_proj: nn.Linear | None = None
        if conditioned:
            if cond_dim is None:
                raise ConfigError("cond_dim: expected the condition's width with conditioning='conv_state', got None")
            if d_conv == 1:
                raise ConfigError(
                    "d_conv: expected at least 2 with conditioning='conv_state', got 1; a convolution of width 1 sees "
                    "nothing before the first step"
                )
            expect_size("cond_dim", cond_dim)
            self.cond_proj = nn.Linear(cond_dim, self.inner)
        elif cond_dim is not None:
            raise ConfigError(
                f"cond_dim: expected None with conditioning='none', got {cond_dim}; choose conditioning='conv_state', "
                "or leave it out"
            )

    @overload
    def forward(
        self,
        x: Tensor,
        cond: Tensor | None = ...,
        *,
        order: Tensor | ScanOrder | None = ...,
        grid: tuple[int, int] | None = ...,
        state: MambaState | None = ...,
        return_state: Literal[False] = ...,
        lengths: Tensor | None = ...,
        seq_idx: Tensor | None = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        cond: Tensor | None = ...,
        *,
        order: Tensor | ScanOrder | None = ...,
        grid: tuple[int, int] | None = ...,
        state: MambaState | None = ...,
        return_state: Literal[True],
        lengths: Tensor | None = ...,
        seq_idx: Tensor | None = ...,
    ) -> tuple[Tensor, MambaState]: ...

    def forward(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        *,
        order: Tensor | ScanOrder | None = None,
        grid: tuple[int, int] | None = None,
        state: MambaState | None = None,
        return_state: bool = False,
        lengths: Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, MambaState]:
        """Mix the tokens.

        Args:
            x: (B, L, C).
            cond: (B, cond_dim), with "conv_state" and without `state` alone.
            order: the row that each step of the scan reads and writes: a permutation (L,) int64, or a `ScanOrder`,
                which needs `grid`; None: in turn. Rows of the result stay where they were in `x`.
            grid: (H, W) with `H * W = L`, for a `ScanOrder`.
            state: what a call before returned, or `initial_state`; None: nothing came before.
            return_state: also return the state after the last step.
            lengths: (B,) int64 or int32, 0 to L: how many rows of each sample come before its padding. Padding changes
                neither a state nor the result of another row, and its own result is zero.
            seq_idx: (B, L) int64 or int32, nondecreasing along L: rows with one number are one document, which sees no
                other. `state` belongs to the first document, the returned state to the last.

        Returns:
            (B, L, C); with `return_state` the pair of it and a `MambaState`.

        Raises:
            ShapeError: a size does not fit, the grid or the condition is missing, or a condition is not wanted.
            ConfigError: a state with two directions, or packed documents with one condition.
        """
        expect_shape("x", x, (None, None, self.dim), "(B, L, C)", "channels come last")
        expect_floating("x", x)
        rows = resolve_order(order, grid, x.shape[1], x.device)
        segments = read_segments(lengths, seq_idx, x)
        if segments is not None and rows is not None:
            rows = expect_permutation(rows, x.shape[1])  # the ops check it where they are what reads it first
        self._expect_meaning(state, return_state, seq_idx)
        padding = None if segments is None else segments.padding
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0)
        inner, gate = self.in_proj(x).chunk(2, dim=-1)
        self._check_state(state, x)
        context = self._conv_context(cond, state, x)
        y, last = self._scan(inner, gate, rows, segments, state, context, return_state)
        out: Tensor = self.out_proj(y)
        if padding is not None:
            out = out.masked_fill(padding.unsqueeze(-1), 0)
        return out if last is None else (out, last)

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """Take one step of a sequence: what `forward` gives for the next token.

        Args:
            x: (B, C), the next token of each sample.
            state: `initial_state`, or what the step before returned.

        Returns:
            (B, C), and the state after the step.

        Raises:
            ShapeError: a size does not fit.
            ConfigError: the mixer has two directions.
        """
        expect_shape("x", x, (None, self.dim), "(B, C)", "pass one token a sample")
        if state is None:
            raise ShapeError("state: expected a MambaState, got None; begin with initial_state(batch)")
        y, state = self(x.unsqueeze(1), state=state, return_state=True)
        return y.squeeze(1), state

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
        self._expect_meaning(None, True, None)
        like = next(parameter for parameter in self.directions.parameters() if parameter.is_floating_point())
        dtype, device = dtype or like.dtype, device or like.device
        ssm = torch.zeros(batch, self.inner, self.d_state, dtype=accumulation_dtype(dtype), device=device)
        context = self._conv_context(cond, None, ssm)
        if context is None:
            context = torch.zeros(batch, self.d_conv - 1, self.inner, dtype=dtype, device=device)
        return MambaState(context, ssm)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        options = f"{self.dim}, d_state={self.d_state}, d_conv={self.d_conv}, expand={self.inner // self.dim}"
        options += ", bidirectional=True" if self.bidirectional else ""
        return options + (f", cond_dim={self.cond_dim}, conditioning='conv_state'" if self.takes_condition else "")

    def _scan(
        self,
        inner: Tensor,
        gate: Tensor,
        rows: Tensor | None,
        segments: Segments | None,
        state: MambaState | None,
        context: Tensor | None,
        return_state: bool,
    ) -> tuple[Tensor, MambaState | None]:
        y, last = None, None
        for index, direction in enumerate(self.directions):
            order, visits, packing = rows, None, {}
            if segments is not None:
                visits, order = segments.visits(rows, backwards=index == 1), None
                packing = {"lengths": segments.lengths, "documents": segments.documents}
            elif index == 1:
                order = torch.arange(inner.shape[1], device=inner.device) if rows is None else rows
                order = reverse_permutation(order)
            u, z = gather_rows(inner, visits), gather_rows(gate, visits)
            scanned, last = direction(u, z, order, state, context=context, return_state=return_state, **packing)
            scanned = scatter_rows(scanned, visits)
            y = scanned if y is None else y + scanned
        assert y is not None
        return y, last

    def _conv_context(self, cond: Tensor | None, state: MambaState | None, like: Tensor) -> Tensor | None:
        """(B, d_conv - 1, E), the projected condition as the convolution's inputs before the first step."""
        if cond is not None and (self.cond_proj is None or state is not None):
            why = "the mixer has conditioning='none'" if self.cond_proj is None else "the state holds it"
            raise ShapeError(
                f"cond: expected None, as {why}, got one; leave it out (a wrapper: takes_condition = False)"
            )
        if self.cond_proj is None or state is not None:
            return None
        if cond is None:
            raise ShapeError("cond: expected (B, cond_dim) with conditioning='conv_state', got None; pass it")
        expect_shape("cond", cond, (like.shape[0], self.cond_dim), "(B, cond_dim)", "pass one vector a sample")
        expect_floating("cond", cond)
        context: Tensor = self.cond_proj(cond)
        return context.unsqueeze(1).expand(-1, self.d_conv - 1, -1)

    def _expect_meaning(self, state: MambaState | None, return_state: bool, seq_idx: Tensor | None) -> None:
        if self.bidirectional and (state is not None or return_state):
            raise ConfigError(
                "state: expected a mixer of one direction, got bidirectional=True, whose second direction starts at "
                "the last token; build it with bidirectional=False"
            )
        if self.takes_condition and seq_idx is not None:
            raise ConfigError(
                "seq_idx: expected conditioning='none', got 'conv_state', whose one condition a sample would reach the "
                "first document alone; pad the documents and pass lengths"
            )

    def _check_state(self, state: MambaState | None, x: Tensor) -> None:
        if state is None:
            return
        if not isinstance(state, MambaState):
            raise ShapeError(
                f"state: expected a MambaState, got {type(state).__name__}; begin with initial_state(batch)"
            )
        batch, advice = x.shape[0], "pass what the call before returned, of the same batch"
        expect_shape("state.conv", state.conv, (batch, self.d_conv - 1, self.inner), "(B, d_conv - 1, E)", advice)
        expect_shape("state.ssm", state.ssm, (batch, self.inner, self.d_state), "(B, E, N)", advice)
