"""What the mixers of this library share: what they are called with, checked, and what makes them recurrences."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Generic, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from wavemamba.checks import expect_floating, expect_shape, expect_size
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.layers.mixers.protocol import resolve_order
from wavemamba.layers.mixers.segments import Walk, read_segments
from wavemamba.scans import ScanOrder

State = TypeVar("State", bound=tuple[Tensor, ...])


class SequenceMixer(nn.Module, Generic[State]):
    """Base of a mixer (B, L, C) -> (B, L, C) that goes along a sequence, in any order, whole or in parts.

    A mixer defines `mix` and `state_shapes`, and maps to its result by a layer `out_proj`.

    Args:
        dim: width C.
        bidirectional: it also goes from the last step to the first, and so has no state to carry on.

    Raises:
        ConfigError: the width is no int >= 1.
    """

    state_class: ClassVar[type[Any]]
    """The named tuple of its state."""
    takes_condition = False
    cond_dim: int | None = None
    """Width of the condition, where it takes one."""
    out_proj: nn.Linear

    def __init__(self, dim: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        expect_size("dim", dim)
        self.dim, self.bidirectional = dim, bidirectional

    @abstractmethod
    def mix(
        self, x: Tensor, walk: Walk, cond: Tensor | None, state: State | None, return_state: bool
    ) -> tuple[Tensor, State | None]:
        """Mix the tokens; everything was checked but the condition.

        Args:
            x: (B, L, C), zero where it is padding.
            walk: the sequence of the rows.
            cond: what `forward` was given.
            state: what stands before the first step, or None.
            return_state: whether the state after the last step is asked for.

        Returns:
            (B, L, C), rows where they were in `x`, and the state, or None.
        """

    @abstractmethod
    def state_shapes(self, batch: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        """The shape of each field of the state, None for any size, and what the sizes mean."""

    @overload
    def forward(
        self,
        x: Tensor,
        cond: Tensor | None = ...,
        *,
        order: Tensor | ScanOrder | None = ...,
        grid: tuple[int, int] | None = ...,
        state: State | None = ...,
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
        state: State | None = ...,
        return_state: Literal[True],
        lengths: Tensor | None = ...,
        seq_idx: Tensor | None = ...,
    ) -> tuple[Tensor, State]: ...

    def forward(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        *,
        order: Tensor | ScanOrder | None = None,
        grid: tuple[int, int] | None = None,
        state: State | None = None,
        return_state: bool = False,
        lengths: Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Mix the tokens.

        Args:
            x: (B, L, C).
            cond: (B, cond_dim), where the mixer takes one, and without `state` alone, which holds it.
            order: the row that each step reads and writes: a permutation (L,) int64, or a `ScanOrder`, which needs
                `grid`; None: in turn. Rows of the result stay where they were in `x`.
            grid: (H, W) with `H * W = L`, for a `ScanOrder`.
            state: what a call before returned, or `initial_state`; None: nothing came before.
            return_state: also return the state after the last step.
            lengths: (B,) int64 or int32, 0 to L: how many rows of each sample come before its padding. Padding changes
                neither a state nor the result of another row, and its own result is zero.
            seq_idx: (B, L) int64 or int32, nondecreasing along L: rows with one number are one document, which sees no
                other. `state` belongs to the first document, the returned state to the last.

        Returns:
            (B, L, C); with `return_state` the pair of it and the state.

        Raises:
            ShapeError: a size does not fit, the grid or the condition is missing, or a condition is not wanted.
            ConfigError: what is asked for has no meaning for this mixer, such as a state with two directions.
        """
        expect_shape("x", x, (None, None, self.dim), "(B, L, C)", "channels come last")
        expect_floating("x", x)
        rows = resolve_order(order, grid, x.shape[1], x.device)
        segments = read_segments(lengths, seq_idx, x)
        self.expect_meaning(state, return_state, lengths, seq_idx)
        padding = None if segments is None else segments.padding
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0)
        self._check_state(state, x.shape[0])
        y, last = self.mix(x, Walk(rows, segments, x.shape[1]), cond, state, return_state)
        if padding is not None:
            y = y.masked_fill(padding.unsqueeze(-1), 0)
        return y if last is None else (y, last)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Take one step of a sequence: what `forward` gives for the next token.

        Args:
            x: (B, C), the next token of each sample.
            state: `initial_state`, or what the step before returned.

        Returns:
            (B, C), and the state after the step.

        Raises:
            ShapeError: a size does not fit.
            ConfigError: the mixer is no recurrence.
        """
        expect_shape("x", x, (None, self.dim), "(B, C)", "pass one token a sample")
        if state is None:
            raise ShapeError(
                f"state: expected a {self.state_class.__name__}, got None; begin with initial_state(batch)"
            )
        y, state = self(x.unsqueeze(1), state=state, return_state=True)
        return y.squeeze(1), state

    def initial_state(
        self, batch: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> State:
        """The state before the first token.

        Args:
            batch: samples B.
            dtype: of the inputs to come; None: the parameters'.
            device: of the inputs to come; None: the parameters'.

        Raises:
            ConfigError: the mixer is no recurrence.
        """
        self.expect_meaning(None, True, None, None)
        dtype, device = self.kind_of_inputs(dtype, device)
        zeros = {
            name: torch.zeros([size or 0 for size in shape], dtype=accumulation_dtype(dtype), device=device)
            for name, (shape, _) in self.state_shapes(batch).items()
        }
        made: State = self.state_class(**zeros)
        return made

    def kind_of_inputs(
        self, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> tuple[torch.dtype, torch.device | str]:
        """The dtype and device of inputs to come, where not given those of the parameters, quantised ones apart."""
        like = next(parameter for parameter in self.parameters() if parameter.is_floating_point())
        return dtype or like.dtype, device or like.device

    def expect_meaning(
        self, state: State | None, return_state: bool, lengths: Tensor | None, seq_idx: Tensor | None
    ) -> None:
        """Raise `ConfigError` where what is asked for has no meaning for this mixer."""
        if self.bidirectional and (state is not None or return_state):
            raise ConfigError(
                "state: expected a mixer of one direction, got bidirectional=True, whose second direction starts at "
                "the last token; build it with bidirectional=False"
            )

    def expect_no_condition(self, cond: Tensor | None, why: str) -> None:
        """Raise `ShapeError` where there is a condition that nothing would read."""
        if cond is not None:
            raise ShapeError(
                f"cond: expected None, as {why}, got one; leave it out (a wrapper: takes_condition = False)"
            )

    def _check_state(self, state: State | None, batch: int) -> None:
        if state is None:
            return
        if not isinstance(state, self.state_class):
            raise ShapeError(
                f"state: expected a {self.state_class.__name__}, got {type(state).__name__}; begin with "
                "initial_state(batch)"
            )
        for name, (shape, meaning) in self.state_shapes(batch).items():
            advice = "pass what the call before returned, of the same batch"
            expect_shape(f"state.{name}", getattr(state, name), shape, meaning, advice)
