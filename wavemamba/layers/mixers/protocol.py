"""What a block asks of a sequence mixer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from wavemamba.layers.parts import expect_part


class Mixer(Protocol):
    """What `mixer=` of the blocks takes: an `nn.Module` with this `forward`.

    A block reads one attribute besides, when it is built: `takes_condition`. Where it is there and False, the mixer
    gets `cond = None`, and the condition acts through the block's modulation alone; otherwise the mixer gets the
    condition, and either uses it or raises.
    """

    def __call__(self, tokens: Tensor, cond: Tensor | None = None, *, order: Tensor | None = None) -> Tensor:
        """Mix the tokens of each sample.

        Args:
            tokens: (B, L, C).
            cond: (B, cond_dim), or None.
            order: (L,) int64, a permutation: step `l` of the sequence reads and writes row `order[l]`; None: in turn.

        Returns:
            (B, L, C), in the dtype of `tokens`; rows stay where they were.
        """


def expect_mixer(mixer: object) -> nn.Module:
    """Return `mixer`, or raise `ConfigError` unless it can be called as a `Mixer` is."""
    return expect_part("mixer", mixer, ("tokens", "cond"), ("order",))
