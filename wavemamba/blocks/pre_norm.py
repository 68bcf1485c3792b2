"""The pre-norm blocks that carry a residual stream along the depth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from wavemamba.blocks.feed_forward import FeedForwardBlock
from wavemamba.blocks.map_block import expect_branch
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.layers import AdaLN, DropPath, add_norm, make_mlp, make_norm
from wavemamba.layers.norm import Norm
from wavemamba.layers.part_checks import expect_result


class PreNormBlock(FeedForwardBlock, ABC):
    """Base of the blocks that carry `(x, residual)` along the depth; a subclass says what mixes the tokens.

        residual = residual + drop_path(x);  n = norm(residual)
        h = mix(n, cond)
        x = h + gate * MLP(norm(h) * (1 + scale) + shift),    shift, scale, gate = Linear(SiLU(cond))

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.
        norm: "rms", "layer", or a function of the width that makes a norm.
        drop_path: probability in [0, 1) that training drops `x` of a sample before it is added to the residual.
        channels_first: take and return (B, C, H, W), `residual` too.

    Raises:
        ConfigError: an option is unknown or out of range.
    """

    def __init__(
        self, dim: int, cond_dim: int | None, *, norm: Norm, drop_path: float, channels_first: bool = False
    ) -> None:
        super().__init__(dim, cond_dim, channels_first=channels_first)
        self.norm = make_norm(norm, dim)
        self.drop_path = DropPath(drop_path)

    @abstractmethod
    def mix(self, n: Tensor, cond: Tensor | None) -> Tensor:
        """Map (B, H, W, C) to the same shape, the residual connection included."""

    def forward(self, x: Tensor, cond: Tensor | None = None, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            x: (B, H, W, C), any H, W >= 1: what the block before returned.
            cond: (B, cond_dim), or None where the block was built without.
            residual: (B, H, W, C) in float32, what the block before returned; None at the first block.

        Returns:
            The new `x` (B, H, W, C) and `residual` (B, H, W, C) in float32 (float64 for float64 inputs).

        Raises:
            ShapeError: a size does not fit, or the condition is missing or unexpected.
        """
        x = self.enter(x)
        self.check_cond(cond, x.shape[0])
        if residual is not None:
            residual = self.enter(residual, "residual", remedy="pass what the block before returned")
            if residual.shape != x.shape:
                raise ShapeError(
                    f"residual: expected the shape of x {tuple(x.shape)}, got {tuple(residual.shape)}; "
                    "pass what the block before returned"
                )
        n, residual = add_norm(x if residual is None else self.drop_path(x), residual, self.norm)
        return self.leave(self.feed_forward(self.mix(n, cond), cond)), self.leave(residual)

    def end_in(self, mlp: nn.Module | Literal["none"] | None, norm: Norm) -> None:
        """End in a feed-forward step: None: the gated MLP of ratio 4; "none": without one."""
        if isinstance(mlp, str):
            if mlp != "none":
                raise ConfigError(f'mlp: expected a module, None or "none", got {mlp!r}; make_mlp makes one')
            return
        self.add_feed_forward(make_mlp(self.dim) if mlp is None else mlp, norm)


class SingleBranchBlock(PreNormBlock):
    """Pre-norm block with one branch over all channels, which carries `(x, residual)` along the depth.

        residual = residual + drop_path(x);  n = norm(residual)
        h = branch(n, cond)
        x = h + gate * MLP(norm(h) * (1 + scale) + shift),    shift, scale, gate = Linear(SiLU(cond))

    With `cond_dim=None`: `x = h + MLP(norm(h))`. The residual connection around the branch is the branch's own, as
    `SpatialMambaBlock` and `WaveletMambaBlock` have it. All gates are closed at the start.

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.
        branch: a `Branch`, called as `branch(x, cond)` on (B, H, W, C).
        mlp: (..., C) -> (..., C); None: the gated MLP of ratio 4; "none": no feed-forward step, `x = h`.
        norm: "rms", "layer", or a function of the width that makes a norm, called once for each norm.
        drop_path: probability in [0, 1) that training drops `x` of a sample before it is added to the residual.
        channels_first: take and return (B, C, H, W), `residual` too.

    Raises:
        ConfigError: an option is unknown or out of range, or a part cannot be called as one.

    Source: the single-branch ablations of Phung et al., "DiMSUM", 2024.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int | None = None,
        *,
        branch: nn.Module,
        mlp: nn.Module | Literal["none"] | None = None,
        norm: Norm = "rms",
        drop_path: float = 0.0,
        channels_first: bool = False,
    ) -> None:
        super().__init__(dim, cond_dim, norm=norm, drop_path=drop_path, channels_first=channels_first)
        self.branch = expect_branch("branch", branch, dim, cond_dim)
        self.end_in(mlp, norm)
        self.reset_parameters()

    def mix(self, n: Tensor, cond: Tensor | None) -> Tensor:
        """The branch on all channels."""
        return expect_result("branch", self.branch(n, cond), tuple(n.shape), "(B, H, W, C)")

    def reset_parameters(self) -> None:
        """Close the gates; what the block holds has its own initialisation."""
        for module in self.modules():
            if isinstance(module, AdaLN):
                module.zero_()
