"""Softmax attention as a mixer: what it sees of the order are the distances along it, and what a causal mask hides."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.layers.attention import attend, check_heads
from wavemamba.layers.mixers.segments import Walk
from wavemamba.layers.mixers.sequence_mixer import SequenceMixer
from wavemamba.layers.positions import rotate_pairs, rotation_frequencies

_HEADS = 8


class AttentionState(NamedTuple):
    """What a causal mixer remembers of the steps so far; it grows with them."""

    k: Tensor
    """(B, L, C), the keys, rotated."""
    v: Tensor
    """(B, L, C), the values."""


class AttentionMixer(SequenceMixer[AttentionState]):
    """Multi-head softmax attention as a sequence mixer, (B, L, C) -> (B, L, C).

        q, k, v = in_proj(tokens);  out_proj(softmax(R(q) R(k)^T / sqrt(C / heads)) v)

    R rotates the pairs of channels of step `l` by angles proportional to `l`, so that a score depends on how far apart
    two tokens are along the scan order; tokens alone could not tell one order from another. With a causal mask a step
    sees itself and what came before it in the order, and the mixer is a recurrence whose state are all keys and values;
    without, it sees all tokens, and has no state. There is no second direction. Time grows with the square of the
    tokens. The mixer takes no condition.

    Args:
        dim: width C.
        num_heads: heads of an even width; None: the largest number up to 8.
        causal: a step sees no later one.

    Raises:
        ConfigError: the heads do not divide the width into even widths.

    Source: Vaswani et al., "Attention is all you need", 2017; rotations: Su et al., "RoFormer", 2021.
    """

    state_class = AttentionState

    def __init__(self, dim: int, *, num_heads: int | None = None, causal: bool = False) -> None:
        super().__init__(dim)
        if dim % 2:
            raise ConfigError(f"dim: expected an even width, as rotations take pairs of channels, got {dim}")
        if num_heads is None:
            num_heads = max(heads for heads in range(1, _HEADS + 1) if dim % (2 * heads) == 0)
        check_heads(dim, num_heads)
        if dim // num_heads % 2:
            raise ConfigError(
                f"num_heads: expected heads of an even width, as rotations take pairs of channels, got {num_heads} of "
                f"width {dim // num_heads}"
            )
        self.num_heads, self.causal = num_heads, causal
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def mix(
        self, x: Tensor, walk: Walk, cond: Tensor | None, state: AttentionState | None, return_state: bool
    ) -> tuple[Tensor, AttentionState | None]:
        """See `SequenceMixer.mix`."""
        self.expect_no_condition(cond, f"{type(self).__name__} takes none")
        q, k, v = self.in_proj(walk.visit(x)).chunk(3, dim=-1)
        before = 0 if state is None else state.k.shape[1]
        q, k = self._rotated(q, before), self._rotated(k, before)
        if state is not None:
            k, v = torch.cat([state.k.to(k.dtype), k], dim=1), torch.cat([state.v.to(v.dtype), v], dim=1)
        mask = self._seen(walk, before, x.device)
        y = attend(q, k, v, self.num_heads, mask=mask, causal=self.causal and mask is None and before == 0)
        out: Tensor = self.out_proj(y)
        return walk.leave(out), AttentionState(k, v) if return_state else None

    def _rotated(self, x: Tensor, before: int) -> Tensor:
        """Queries or keys (B, L, C), each head rotated by the places `before`, `before + 1`, ..."""
        width = self.dim // self.num_heads
        places = before + torch.arange(x.shape[1], dtype=torch.float64, device=x.device)
        angles = places[:, None, None] * rotation_frequencies(width // 2, x.device)
        wide = x.to(accumulation_dtype(x.dtype)).unflatten(-1, (self.num_heads, width))
        return rotate_pairs(wide, angles).flatten(2).to(x.dtype)

    def _seen(self, walk: Walk, before: int, device: torch.device) -> Tensor | None:
        """Which keys each query sees, (B, 1, L, L) or (L, before + L); None: what `causal` alone says."""
        length = walk.length
        if walk.segments is None and (before == 0 or length == 1):
            return None
        seen = torch.ones(length, before + length, dtype=torch.bool, device=device)
        seen = seen.tril(before) if self.causal else seen
        for parts in (walk.documents, walk.padding):  # padding sees padding: a query that sees nothing has no mean
            if parts is not None:
                seen = seen & (parts[:, None, :, None] == parts[:, None, None, :])
        return seen

    def initial_state(
        self, batch: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> AttentionState:
        """See `SequenceMixer.initial_state`; no keys and values yet."""
        dtype = self.kind_of_inputs(dtype, device)[0]
        k, v = super().initial_state(batch, dtype=dtype, device=device)
        return AttentionState(k.to(dtype), v.to(dtype))

    def state_shapes(self, batch: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        """See `SequenceMixer.state_shapes`."""
        return dict.fromkeys(("k", "v"), ((batch, None, self.dim), "(B, L, C)"))

    def expect_meaning(
        self, state: AttentionState | None, return_state: bool, lengths: Tensor | None, seq_idx: Tensor | None
    ) -> None:
        """See `SequenceMixer.expect_meaning`."""
        super().expect_meaning(state, return_state, lengths, seq_idx)
        if state is None and not return_state:
            return
        if not self.causal:
            raise ConfigError(
                "state: expected a causal mixer, got causal=False, whose every step sees all later ones; build it with "
                "causal=True"
            )
        if lengths is not None or seq_idx is not None:
            raise ConfigError(
                "state: expected neither lengths nor seq_idx beside it, as its keys are those of all steps of every "
                "sample; pass sequences of one length"
            )

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"{self.dim}, num_heads={self.num_heads}" + (", causal=True" if self.causal else "")
