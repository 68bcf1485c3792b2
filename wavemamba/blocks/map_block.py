"""What all blocks on maps share: the checks of their inputs, and the one place that knows where the channels are."""

from __future__ import annotations

from torch import Tensor, nn

from wavemamba.checks import expect_floating, expect_shape, expect_size
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.layers.part_checks import expect_part
from wavemamba.layers.weight_decay import undecayed_names


class MapBlock(nn.Module):
    """Base of the blocks that take maps (B, H, W, C), or (B, C, H, W) with `channels_first=True`.

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.
        channels_first: take and return (B, C, H, W), as `nn.Conv2d` does.

    Raises:
        ConfigError: a width is no int >= 1.
    """

    def __init__(self, dim: int, cond_dim: int | None, *, channels_first: bool) -> None:
        super().__init__()
        expect_size("dim", dim)
        if cond_dim is not None:
            expect_size("cond_dim", cond_dim)
        self.dim, self.cond_dim, self.channels_first = dim, cond_dim, channels_first

    def enter(self, x: Tensor, name: str = "x", dim: int | None = None, remedy: str | None = None) -> Tensor:
        """Check a map that was passed to the block and return it channels last, (B, H, W, C).

        Args:
            x: the map.
            name: the argument's name.
            dim: its width; None: that of the block.
            remedy: what the caller can do about a wrong shape, where it is not the place of the channels.

        Raises:
            ShapeError: it is no tensor, or has another shape, no row or column, or no floating dtype.
        """
        if not isinstance(x, Tensor):
            raise ShapeError(
                f"{name}: expected a tensor, got {type(x).__name__}; where a block returns (x, residual), as "
                "DiMSUMBlock does, pass both on: block(x, cond, residual)"
            )
        dim = self.dim if dim is None else dim
        if self.channels_first:
            advice = remedy or "the block was built with channels_first=True"
            expect_shape(name, x, (None, dim, None, None), "(B, C, H, W)", advice)
            x = x.permute(0, 2, 3, 1)
        else:
            advice = remedy or "pass a map with channels last, as wide as the block"
            # Rows are compared with the width where the channels are wrong alone: a graph would ask it of every map.
            if remedy is None and x.dim() == 4 and x.shape[3] != dim and x.shape[1] == dim:
                advice = "move channels last with x.permute(0, 2, 3, 1), or build the block with channels_first=True"
            expect_shape(name, x, (None, None, None, dim), "(B, H, W, C)", advice)
        expect_floating(name, x)
        if x.shape[1] < 1 or x.shape[2] < 1:
            raise ShapeError(f"{name}: expected H, W >= 1, got {(x.shape[1], x.shape[2])}; leave out what is empty")
        return x

    def leave(self, x: Tensor) -> Tensor:
        """Return a map (B, H, W, C) as the caller has its channels."""
        # Contiguous, as PyTorch's compiler cannot sort the strides of a permuted map of symbolic size.
        return x.permute(0, 3, 1, 2).contiguous() if self.channels_first else x

    def check_cond(self, cond: Tensor | None, batch: int) -> None:
        """Check that a condition (B, cond_dim) came where, and only where, the block was built for one.

        Raises:
            ShapeError: it is missing, not wanted, or of another shape or dtype.
        """
        if self.cond_dim is None:
            if cond is not None:
                came = tuple(cond.shape) if isinstance(cond, Tensor) else type(cond).__name__
                raise ShapeError(
                    f"cond: expected None, as the block has cond_dim=None, got {came}; build it with cond_dim"
                )
            return
        if not isinstance(cond, Tensor):
            what = "None" if cond is None else type(cond).__name__
            raise ShapeError(
                f"cond: expected a tensor (B, {self.cond_dim}), got {what}; pass the condition, or build with "
                "cond_dim=None"
            )
        expect_shape(
            "cond", cond, (batch, self.cond_dim), "(B, cond_dim)", "pass one vector a sample, as wide as cond_dim"
        )
        expect_floating("cond", cond)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay would harm, for timm's optimizers."""
        return undecayed_names(self)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"{self.dim}, cond_dim={self.cond_dim}" + (", channels_first=True" if self.channels_first else "")


def expect_branch(name: str, branch: object, dim: int, cond_dim: int | None) -> nn.Module:
    """Return a branch, or raise `ConfigError` unless it can be called as a `Branch` of this width.

    Args:
        name: what it is called in the block.
        branch: what the caller passed.
        dim: its width C.
        cond_dim: width of the condition that it will get, or None.
    """
    part = expect_part(name, branch, ("x", "cond"))
    if isinstance(part, MapBlock):
        expect_fit(name, part, dim)
        if part.cond_dim != cond_dim:
            raise ConfigError(
                f"{name}: expected cond_dim = {cond_dim}, as the block has, got {part.cond_dim}; build it with that"
            )
    return part


def expect_fit(name: str, part: MapBlock, dim: int) -> None:
    """Raise `ConfigError` unless one of this library's blocks fits inside another: width, and channels last."""
    if part.dim != dim:
        raise ConfigError(f"{name}: expected width {dim}, got {part.dim}; build it with that")
    if part.channels_first:
        raise ConfigError(
            f"{name}: expected channels_first=False, as the parts of a block are called channels last, got True; "
            "set it on the block alone"
        )
