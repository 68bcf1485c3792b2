"""Decaying sums along a sequence, taken in chunks: matrix products inside a chunk, a short recurrence between them.

    h_l = diag(decay_l) h_{l-1} + key_l value_l^T,    y_l = h_l^T query_l

For the steps of one chunk, counted from 0, with h the state that enters it and h' the one that leaves it:

    y_i = sum_{j <= i} weight_ij value_j + h^T (query_i * prod_{k <= i} decay_k)
    h'  = diag(prod_k decay_k) h + sum_j (key_j * prod_{k > j} decay_k) value_j^T
    weight_ij = sum_n query_in key_jn prod_{j < k <= i} decay_kn

Only products of decays are formed, never quotients, and no sum of their logarithms: nothing overflows where decays are
at most 1, a decay of exactly 0 is one like others, and a strong decay at one step costs the other steps no digits.

Source: Dao and Gu, "Transformers are SSMs", 2024, section 6; Yang et al., "Gated linear attention", 2023, section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.ops.packed import sequence_starts
from wavemamba.ops.recurrence import linear_recurrence
from wavemamba.sizes import cut, is_open, not_one


class Chunks:
    """How the steps of a call are taken together.

    Tensors in chunks are (B, c, X, Q, Y): c chunks of Q steps, X heads or groups.

    Args:
        length: steps L.
        most: steps that one product may take; Q is a power of two, at most twice that, and no larger than L asks for.
        seq_idx: (B, L), the sequence of each step, or None: one.
    """

    def __init__(self, length: int, most: int, seq_idx: Tensor | None) -> None:
        self.length, self.size = length, 1
        self.open = is_open(length)
        while self.size < most and (self.open or self.size < length):
            self.size *= 2
        self.count = not_one((length + self.size - 1) // self.size)
        self.rest = self.count * self.size - length
        self.alone = not self.open and 1 < length <= self.size
        """One chunk, whose outputs need no state but the initial one. Of a single step they would not depend on the
        decay at all, and its gradient is zero instead of missing."""
        self.number: Tensor | None = None
        """(B, c, 1, Q, 1), which sequence of its chunk a step belongs to; 0 goes on from the chunk before."""
        if seq_idx is not None:
            starts = F.pad(sequence_starts(seq_idx, None), (0, self.rest)).unflatten(1, (self.count, self.size))
            self.number = starts.cumsum(-1)[:, :, None, :, None]

    def split(self, x: Tensor) -> Tensor:
        """(B, L, X, Y) as (B, c, X, Q, Y); steps added at the end are zero."""
        if self.open or self.rest:  # a graph for any length does not ask whether there are some
            x = F.pad(x, (0, 0, 0, 0, 0, self.rest))
        return x.unflatten(1, (self.count, self.size)).transpose(2, 3)

    def join(self, y: Tensor) -> Tensor:
        """(B, c, X, Q, Y) as (B, L, X, Y)."""
        return cut(y.transpose(2, 3).flatten(1, 2), 1, self.length)

    def of_same(self, weights: Tensor) -> Tensor:
        """Weights (B, c, X, Q, Q) with zeros where row and column are of two sequences."""
        return weights if self.number is None else weights.masked_fill(self.number != self.number.mT, 0)

    def of_last(self, x: Tensor) -> Tensor:
        """Zeros for the steps that the last step's sequence does not hold: what leaves the chunk knows none of them."""
        return x if self.number is None else x.masked_fill(self.number != self.number[..., -1:, :], 0)

    def of_first(self, x: Tensor) -> Tensor:
        """Zeros for the steps that do not go on from the chunk before."""
        return x if self.number is None else x.masked_fill(self.number != 0, 0)

    def weigh(self, weights: Tensor, value: Tensor) -> Tensor:
        """`weights @ value`, (B, c, X, Q, Q) and (B, c, X, Q, P), where what is not finite reaches no earlier step.

        A product would multiply it with the zeros of the steps before, which is NaN.
        """
        flaw = value.detach() * 0  # NaN where a value is not finite
        if self.number is None:
            flaw = flaw.cumsum(-2)
        else:
            seen = self.of_same(torch.ones_like(weights).tril()) @ flaw.isnan().to(value.dtype)
            flaw = torch.zeros_like(flaw).masked_fill(seen > 0, torch.nan)
        return weights @ value.nan_to_num(0.0, 0.0, 0.0) + flaw

    def pass_on(self, own: Tensor, gain: Tensor, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Carry the state from chunk to chunk.

        Args:
            own: (B, c, ...), the state that each chunk makes of zero.
            gain: (B, c, ...), what it leaves of the state that enters; sides of 1 stand for any.
            initial_state: (B, ...), the state that enters the first chunk; zero where absent.

        Returns:
            The states that enter the chunks, (B, c, ...), and the last one, (B, ...).
        """
        first = torch.zeros_like(own[:, :1]) if initial_state is None else initial_state.unsqueeze(1)
        fresh = None  # chunks in which a sequence starts
        if self.number is not None:
            fresh = (self.number[..., -1:, :] > 0).flatten(2).view(*own.shape[:2], *[1] * (own.dim() - 2))
            fresh = torch.cat([torch.zeros_like(fresh[:, :1]), fresh], dim=1)
        gain = torch.cat([torch.ones_like(gain[:, :1]), gain], dim=1)
        states = linear_recurrence(gain, torch.cat([first, own], dim=1), fresh)
        return cut(states, 1, self.count), states[:, -1]


class Pairs(NamedTuple):
    """What `pair_weights` finds in each chunk."""

    weights: Tensor
    """(..., Q, Q), `weight_ij`, zero above the diagonal."""
    query: Tensor
    """(..., Q, N), `query_i prod_{k <= i} decay_k`: what meets the state that enters the chunk."""
    key: Tensor
    """(..., Q, N), `key_j prod_{k > j} decay_k`: what the state that leaves it is made of."""
    decay: Tensor
    """(..., 1, N), the product of all decays."""


def pair_weights(query: Tensor, key: Tensor, decay: Tensor) -> Pairs:
    """Let the queries of each chunk meet its earlier keys, with the decays between them.

    Neighbouring blocks of steps are merged in pairs: the right one's queries, decayed from its start, meet the left
    one's keys, decayed to its end.

    Args:
        query: (..., Q, N), Q a power of two.
        key: (..., Q, N).
        decay: (..., Q, N).
    """
    weights = (query * key).sum(-1)[..., None, None]  # (..., blocks, size, size)
    query, through, size = query * decay, decay, 1
    while size < query.shape[-2]:
        left, right = through.unflatten(-2, (-1, 2, 1)).unbind(-3)  # (..., blocks / 2, 1, N)
        left_query, right_query = query.unflatten(-2, (-1, 2, size)).unbind(-3)  # (..., blocks / 2, size, N)
        left_key, right_key = key.unflatten(-2, (-1, 2, size)).unbind(-3)
        first, second = weights.unflatten(-3, (-1, 2)).unbind(-3)
        below = torch.cat([right_query @ left_key.mT, second], dim=-1)
        weights = torch.cat([F.pad(first, (0, size)), below], dim=-2)
        query = torch.stack([left_query, right_query * left], dim=-3).flatten(-4, -2)
        key = torch.stack([left_key * right, right_key], dim=-3).flatten(-4, -2)
        through, size = (left * right).squeeze(-2), 2 * size
    return Pairs(weights.squeeze(-3), query, key, through)
