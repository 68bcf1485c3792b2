"""The feed-forward step that blocks end in."""

from __future__ import annotations

from torch import Tensor, nn

from wavemamba.blocks.map_block import MapBlock
from wavemamba.layers import AdaLN, gated_residual, make_norm, modulate
from wavemamba.layers.norm import Norm
from wavemamba.layers.part_checks import expect_part, expect_result


class FeedForwardBlock(MapBlock):
    """Base of the blocks that can end in a feed-forward step.

        x + gate * MLP(norm(x) * (1 + scale) + shift),    shift, scale, gate = Linear(SiLU(cond))

    With `cond_dim=None`: `x + MLP(norm(x))`. Without an MLP: `x`. The arguments are those of `MapBlock`.
    """

    def __init__(self, dim: int, cond_dim: int | None, *, channels_first: bool) -> None:
        super().__init__(dim, cond_dim, channels_first=channels_first)
        self.norm_mlp: nn.Module | None = None
        self.mlp: nn.Module | None = None
        self.modulation: AdaLN | None = None

    def add_feed_forward(self, mlp: nn.Module, norm: Norm) -> None:
        """Give the block such a step, whose gate is closed at the start; called once, in the constructor.

        Args:
            mlp: (..., C) -> (..., C).
            norm: see `make_norm`.

        Raises:
            ConfigError: the MLP cannot be called as one, or the norm is unknown.
        """
        self.norm_mlp = make_norm(norm, self.dim)
        self.mlp = expect_part("mlp", mlp, ("x",))
        if self.cond_dim is not None:
            self.modulation = AdaLN(self.dim, self.cond_dim)
            self.modulation.zero_()

    def feed_forward(self, x: Tensor, cond: Tensor | None) -> Tensor:
        """Take the step on (B, ..., C), with cond (B, cond_dim); returns the same shape."""
        if self.mlp is None or self.norm_mlp is None:
            return x
        if self.modulation is None or cond is None:
            return gated_residual(x, self._update(self.mlp, self.norm_mlp(x)), None)
        (step,) = self.modulation(cond)
        update = self._update(self.mlp, modulate(self.norm_mlp(x), step.shift, step.scale))
        return gated_residual(x, update, step.gate)

    @staticmethod
    def _update(mlp: nn.Module, x: Tensor) -> Tensor:
        return expect_result("mlp", mlp(x), tuple(x.shape), "(B, H, W, C)")
