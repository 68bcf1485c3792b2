"""Padded and packed sequences: which rows belong together, and in which sequence a scan visits them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wavemamba.checks import expect_shape, on_hand
from wavemamba.errors import ShapeError
from wavemamba.scans import expect_permutation, invert_permutation

_INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True)
class Segments:
    """The rows of each sample: padding, and documents that do not see each other.

    Args:
        length: rows L of a sample.
        lengths: (B,) int64, how many rows come before the padding; None: no padding.
        documents: (B, L) int64, the document of every row, nondecreasing; padding counts to the last one. None: one.
    """

    length: int
    lengths: Tensor | None
    documents: Tensor | None

    @property
    def padding(self) -> Tensor | None:
        """(B, L) bool, which rows are padding; None: no row is."""
        if self.lengths is None:
            return None
        return is_padding(self.length, self.lengths)

    def visits(self, order: Tensor | None, *, backwards: bool) -> Tensor | None:
        """The rows in the sequence of a scan, document by document, padding last.

        Args:
            order: (L,) int64, or None: in turn.
            backwards: last first, inside each document.

        Returns:
            (B, L) int64, or None: in turn.
        """
        if order is None and not backwards:
            return None
        padding, documents = self.padding, self.documents
        given = padding if documents is None else documents
        assert given is not None
        rows = torch.arange(self.length, device=given.device) if order is None else order
        rows = rows.flip(0) if backwards else rows
        if documents is None:
            assert padding is not None
            return rows[padding[:, rows].to(torch.uint8).argsort(dim=1, stable=True)]
        rank = documents if padding is None else documents.masked_fill(padding, torch.iinfo(torch.int64).max)
        return rows[rank[:, rows].argsort(dim=1, stable=True)]


class Walk:
    """The sequence in which the steps of a mixer visit the rows: document by document, padding last.

    Args:
        rows: (L,), the row that each step visits, or None: in turn.
        segments: padding and documents, or None: neither.
        length: rows L.
    """

    def __init__(self, rows: Tensor | None, segments: Segments | None, length: int) -> None:
        if rows is not None and segments is not None:
            rows = expect_permutation(rows, length)  # the ops check it where they are what reads it first
        self.rows, self.segments, self.length = rows, segments, length

    @property
    def lengths(self) -> Tensor | None:
        """(B,) int64, how many steps come before the padding; None: all."""
        return None if self.segments is None else self.segments.lengths

    @property
    def documents(self) -> Tensor | None:
        """(B, L) int64, the document of every step, nondecreasing; None: one."""
        return None if self.segments is None else self.segments.documents

    @property
    def padding(self) -> Tensor | None:
        """(B, L) bool, which steps visit padding; None: no step does."""
        return None if self.segments is None else self.segments.padding

    def visit(self, x: Tensor) -> Tensor:
        """(B, L, C), rows, as what the steps visit."""
        if self.segments is not None:
            return gather_rows(x, self.segments.visits(self.rows, backwards=False))
        return x if self.rows is None else x.index_select(1, expect_permutation(self.rows, self.length))

    def leave(self, y: Tensor) -> Tensor:
        """(B, L, C), what the steps made, as rows."""
        if self.segments is not None:
            return scatter_rows(y, self.segments.visits(self.rows, backwards=False))
        return y if self.rows is None else y.index_select(1, invert_permutation(self.rows.long()))

    def turn(self, x: Tensor) -> Tensor:
        """(B, L, C), steps, the last one first inside each document; turned twice it is as before."""
        return x.flip(1) if self.segments is None else gather_rows(x, self.segments.visits(None, backwards=True))


def read_segments(lengths: Tensor | None, seq_idx: Tensor | None, tokens: Tensor) -> Segments | None:
    """Check `lengths` (B,) and `seq_idx` (B, L) of tokens (B, L, C); None where there is neither.

    Values are read on the CPU and outside compiled regions alone, so that nothing waits for a GPU or breaks a graph.

    Raises:
        ShapeError: a shape, dtype or value does not fit.
    """
    if lengths is None and seq_idx is None:
        return None
    batch, length = tokens.shape[:2]
    for name, value, expected, meaning in (
        ("lengths", lengths, (batch,), "(B,)"),
        ("seq_idx", seq_idx, (batch, length), "(B, L)"),
    ):
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.dtype not in _INTEGERS:
            came = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(f"{name}: expected a tensor {meaning} of int64 or int32, got {came}; convert it")
        expect_shape(name, value, expected, meaning)
        if value.device != tokens.device:
            raise ShapeError(
                f"{name}: expected it on {tokens.device}, where the tokens are, got {value.device}; move it"
            )
    if lengths is not None:
        if on_hand(lengths) and not bool(((lengths >= 0) & (lengths <= length)).all()):
            raise ShapeError(
                f"lengths: expected 0 to L = {length}, got {int(lengths.min())} to {int(lengths.max())}; "
                "count the rows before the padding"
            )
        lengths = lengths.long()
    if seq_idx is not None:
        if on_hand(seq_idx) and bool((seq_idx.diff(dim=1) < 0).any()):
            raise ShapeError(
                "seq_idx: expected numbers that do not decrease along L, got a smaller one after a larger; "
                "put the documents one after the other"
            )
        seq_idx = seq_idx.long()
        if lengths is not None:
            last = seq_idx.gather(1, (lengths[:, None] - 1).clamp(min=0))
            seq_idx = torch.where(is_padding(length, lengths), last, seq_idx)
    return Segments(length, lengths, seq_idx)


def is_padding(length: int, lengths: Tensor) -> Tensor:
    """(B, L) bool, which rows come after the first `lengths` (B,) of a sample."""
    return torch.arange(length, device=lengths.device) >= lengths[:, None]


def gather_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Row `rows[b, l]` of (B, L, C) at every place; None: `x` itself."""
    return x if rows is None else x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def scatter_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """What `gather_rows` did, undone."""
    return x if rows is None else gather_rows(x, rows.argsort(dim=1))
