"""The mixer of gated linear attention: keys and values in a state that decays by what the tokens say."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.checks import expect_size
from wavemamba.dtypes import accumulation_dtype
from wavemamba.layers.attention import check_heads, default_heads
from wavemamba.layers.mixers.segments import Walk
from wavemamba.layers.mixers.sequence_mixer import SequenceMixer
from wavemamba.layers.norm import RMSNorm
from wavemamba.ops import gla_scan

_HEADS = 4
_TEMPERATURE = 16.0
"""The root that is taken of a decay: decays start near 1."""


class GLAState(NamedTuple):
    """What the mixer remembers between two steps of a sequence."""

    memory: Tensor
    """(B, H, K, V), the state of each head, in float32 (float64 for float64 inputs)."""


class GLAMixer(SequenceMixer[GLAState]):
    """Gated linear attention as a sequence mixer, (B, L, C) -> (B, L, C).

        q, k, v, g, r = in_proj(tokens);  a = sigmoid(up(r) + bias) ** (1 / 16)
        S_l = diag(a_l) S_{l-1} + k_l v_l^T;  y_l = S_l^T q_l / sqrt(K);  out_proj(RMSNorm(y) * SiLU(g))

    head by head, with values of width C in all and one norm weight for all heads. A second direction, where asked, has
    decays of its own, runs from the last step to the first, and is added before the norm. The mixer takes no condition.

    Args:
        dim: width C.
        d_state: width K of a head's keys, the state size of a channel; None: half of the width of its values, at
            least 1.
        num_heads: heads H, a divisor of C; None: the largest up to 4.
        gate_rank: rank of the projection to the decays.
        bidirectional: go backwards too.

    Raises:
        ConfigError: a size is no int >= 1, or the heads do not divide the width.

    Source: Yang et al., "Gated linear attention transformers with hardware-efficient training", 2023, section 4.4.
    """

    state_class = GLAState

    def __init__(
        self,
        dim: int,
        *,
        d_state: int | None = None,
        num_heads: int | None = None,
        gate_rank: int = 16,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(dim, bidirectional=bidirectional)
        num_heads = default_heads(dim, _HEADS) if num_heads is None else num_heads
        check_heads(dim, num_heads)
        d_state = max(1, dim // num_heads // 2) if d_state is None else d_state
        sizes: dict[str, Any] = {"d_state": d_state, "gate_rank": gate_rank}
        for name, size in sizes.items():
            expect_size(name, size)
        self.num_heads, self.d_state, self.gate_rank = num_heads, d_state, gate_rank
        self.widths = [num_heads * d_state, num_heads * d_state, dim, dim, gate_rank]  # q, k, v, g, r
        self.in_proj = nn.Linear(dim, sum(self.widths), bias=False)
        self.directions = nn.ModuleList(Decay(gate_rank, num_heads * d_state) for _ in range(2 if bidirectional else 1))
        self.norm = RMSNorm(dim // num_heads)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def mix(
        self, x: Tensor, walk: Walk, cond: Tensor | None, state: GLAState | None, return_state: bool
    ) -> tuple[Tensor, GLAState | None]:
        """See `SequenceMixer.mix`."""
        self.expect_no_condition(cond, f"{type(self).__name__} takes none")
        q, k, v, gate, low = self.in_proj(walk.visit(x)).split(self.widths, dim=-1)
        q = q * self.d_state**-0.5
        forwards, *backwards = self.directions
        memory = None if state is None else state.memory
        y, memory = self._scan((q, k, v, forwards(low)), memory, walk, return_state)
        for direction in backwards:
            turned = tuple(walk.turn(t) for t in (q, k, v, direction(low)))
            y = y + walk.turn(self._scan(turned, None, walk, False)[0])
        wide = accumulation_dtype(y.dtype)
        normed = self.norm(y.unflatten(-1, (self.num_heads, -1)), wide).flatten(-2)
        out: Tensor = self.out_proj((normed * F.silu(gate.to(wide))).to(y.dtype))
        return walk.leave(out), None if memory is None else GLAState(memory)

    def _scan(
        self, rows: tuple[Tensor, ...], memory: Tensor | None, walk: Walk, return_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Scan q, k, v and the decays, each (B, L, ...); the state is returned where it is asked for."""
        q, k, v, log_decay = rows
        if return_state and walk.padding is not None:  # padding leaves the state as it is
            padding = walk.padding.unsqueeze(-1)
            k, log_decay = k.masked_fill(padding, 0), log_decay.masked_fill(padding, 0)
        heads = [t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v, log_decay)]
        options: dict[str, Any] = {"initial_state": memory, "seq_idx": walk.documents}
        found = gla_scan(*heads, **options, return_last_state=return_state)
        return (found[0].flatten(2), found[1]) if return_state else (found.flatten(2), None)

    def state_shapes(self, batch: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        """See `SequenceMixer.state_shapes`."""
        width = self.dim // self.num_heads
        return {"memory": ((batch, self.num_heads, self.d_state, width), "(B, H, K, V)")}

    def extra_repr(self) -> str:
        """The options, for `print`."""
        options = f"{self.dim}, d_state={self.d_state}, num_heads={self.num_heads}, gate_rank={self.gate_rank}"
        return options + (", bidirectional=True" if self.bidirectional else "")


class Decay(nn.Module):
    """How fast each channel of the keys is forgotten: `log sigmoid(up(r) + bias) / 16`, in float32.

    Args:
        rank: width of r.
        channels: channels of the keys.
    """

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.up = nn.Linear(rank, channels, bias=False)
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def forward(self, low: Tensor) -> Tensor:
        """Map (..., rank) to (..., channels), all < 0."""
        logits = self.up(low)
        wide = accumulation_dtype(logits.dtype)
        return F.logsigmoid(logits.to(wide) + self.bias.to(wide)) / _TEMPERATURE

    def reset_parameters(self) -> None:
        """A bias of zero: half of the state is kept over 16 steps."""
        self.up.reset_parameters()
        nn.init.zeros_(self.bias)
