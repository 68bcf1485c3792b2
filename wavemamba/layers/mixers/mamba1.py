"""The Mamba-1 mixer: any scan order, states in and out, padding and packed sequences, a conditioning that works."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wavemamba.checks import expect_size
from wavemamba.layers.mixers.convolved import Conditioning, ConvolvedMixer, MambaState
from wavemamba.layers.mixers.segments import Walk, gather_rows, scatter_rows
from wavemamba.layers.mixers.selective_ssm import SelectiveSSM
from wavemamba.scans import reverse_permutation


class MambaMixer(ConvolvedMixer):
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
        sizes: dict[str, Any] = {"dim": dim, "d_state": d_state, "d_conv": d_conv, "expand": expand}
        for name, size in sizes.items():
            expect_size(name, size)
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        expect_size("dt_rank", rank)
        inner = expand * dim
        super().__init__(dim, inner, d_conv, bidirectional=bidirectional, cond_dim=cond_dim, conditioning=conditioning)
        self.inner, self.d_state = inner, d_state
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.directions = nn.ModuleList(
            SelectiveSSM(inner, d_state, d_conv, rank) for _ in range(2 if bidirectional else 1)
        )
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.cond_proj = self.condition_projection()

    def mix(
        self, x: Tensor, walk: Walk, cond: Tensor | None, state: MambaState | None, return_state: bool
    ) -> tuple[Tensor, MambaState | None]:
        """See `SequenceMixer.mix`; the kernels read and write by the order, but for padding and documents."""
        inner, gate = self.in_proj(x).chunk(2, dim=-1)
        context = self.context(cond, state, x.shape[0])
        y, last = None, None
        for index, direction in enumerate(self.directions):
            order, visits = walk.rows, None
            if walk.segments is not None:
                visits, order = walk.segments.visits(walk.rows, backwards=index == 1), None
            elif index == 1:
                order = torch.arange(walk.length, device=x.device) if order is None else order
                order = reverse_permutation(order)
            scanned, last = direction(
                gather_rows(inner, visits),
                gather_rows(gate, visits),
                order,
                state,
                context=context,
                return_state=return_state,
                lengths=walk.lengths,
                documents=walk.documents,
            )
            scanned = scatter_rows(scanned, visits)
            y = scanned if y is None else y + scanned
        return self.out_proj(y), last

    def state_shapes(self, batch: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        """See `SequenceMixer.state_shapes`."""
        return {
            "conv": ((batch, self.d_conv - 1, self.inner), "(B, d_conv - 1, E)"),
            "ssm": ((batch, self.inner, self.d_state), "(B, E, N)"),
        }

    def extra_repr(self) -> str:
        """The options, for `print`."""
        options = f"{self.dim}, d_state={self.d_state}, d_conv={self.d_conv}, expand={self.inner // self.dim}"
        options += ", bidirectional=True" if self.bidirectional else ""
        return options + (f", cond_dim={self.cond_dim}, conditioning='conv_state'" if self.takes_condition else "")
