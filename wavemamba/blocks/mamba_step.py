"""The step that both branches of a DiMSUM block take: a modulated, gated, residual Mamba on a sequence."""

from __future__ import annotations

from torch import Tensor, nn

from wavemamba.checks import expect_floating, expect_shape
from wavemamba.errors import ShapeError
from wavemamba.layers import AdaLN, MambaMixer, RMSNorm, gated_residual, modulate


def check_map(x: Tensor, dim: int) -> tuple[int, int]:
    """Check a channels-last map (B, H, W, dim) and return its grid."""
    expect_shape("x", x, (None, None, None, dim), "(B, H, W, C)", "move channels last with x.permute(0, 2, 3, 1)")
    expect_floating("x", x)
    batch, height, width = x.shape[:3]
    if batch < 1 or height < 1 or width < 1:
        raise ShapeError(f"x: expected (B, H, W, C) with B, H, W >= 1, got {tuple(x.shape)}; leave out what is empty")
    return height, width


def check_cond(cond: Tensor | None, cond_dim: int | None, batch: int) -> None:
    """Check that a condition (B, cond_dim) came where, and only where, the block was built for one."""
    if cond_dim is None:
        if cond is not None:
            raise ShapeError(
                f"cond: expected None, as the block has cond_dim=None, got {tuple(cond.shape)}; build it with cond_dim"
            )
        return
    if cond is None:
        raise ShapeError(f"cond: expected (B, {cond_dim}), got None; pass the condition, or build with cond_dim=None")
    expect_shape("cond", cond, (batch, cond_dim), "(B, cond_dim)", "pass one vector a sample, as wide as cond_dim")
    expect_floating("cond", cond)


class GatedMamba(nn.Module):
    """`b + gate * Mamba(b * (1 + scale) + shift)` on a sequence, with shift, scale, gate = adaLN(cond).

    Without a condition: `b + Mamba(RMSNorm(b))`.

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.
        mixer: a module called as `mixer(tokens, cond, order=order)`, (B, L, C) -> (B, L, C); None: `MambaMixer(dim)`.
    """

    def __init__(self, dim: int, cond_dim: int | None, mixer: nn.Module | None) -> None:
        super().__init__()
        self.mixer = MambaMixer(dim) if mixer is None else mixer
        self.norm = RMSNorm(dim) if cond_dim is None else None
        self.modulation = None if cond_dim is None else AdaLN(dim, cond_dim)

    def forward(self, tokens: Tensor, cond: Tensor | None, order: Tensor | None) -> Tensor:
        """Take the step on (B, L, C), in the scan order `order`; returns (B, L, C)."""
        if self.modulation is None or cond is None:
            assert self.norm is not None
            return gated_residual(tokens, self.mixer(self.norm(tokens), None, order=order), None)
        (step,) = self.modulation(cond)
        update = self.mixer(modulate(tokens, step.shift, step.scale), cond, order=order)
        return gated_residual(tokens, update, step.gate)
