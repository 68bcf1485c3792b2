"""The ZigMa block: a modulated Mamba along one path, and attention to text."""

from __future__ import annotations

from torch import Tensor, nn

from wavemamba.blocks.map_block import MapBlock
from wavemamba.blocks.spatial import expect_scan
from wavemamba.checks import expect_shape, expect_size
from wavemamba.errors import ShapeError
from wavemamba.layers import AdaLN, DropPath, MambaMixer, add_norm, gated_residual, make_norm, modulate
from wavemamba.layers.mixers import expect_mixer
from wavemamba.layers.norm import plain_layer_norm
from wavemamba.layers.part_checks import expect_part, expect_result
from wavemamba.scans import ScanOrder


class ZigMaBlock(MapBlock):
    """Pre-norm block that carries `(x, residual)` along the depth.

        residual = residual + drop_path(x);  n = RMSNorm(residual)
        x = n + gate_s * Mamba(n * (1 + scale_s) + shift_s)
        x = x + gate_a * CrossAttention(LN(x) * (1 + scale_a) + shift_a, context),    with text alone

    Args:
        dim: width C.
        cond_dim: width of the condition.
        scan: the order that the mixer walks, or its name.
        mixer: called as `mixer(tokens, None, order=order)`; None: `MambaMixer(dim)`.
        cross: called as `cross(tokens, context)`; None: no text.
        drop_path: probability in [0, 1) that training drops `x` of a sample before it is added to the residual.

    Raises:
        ConfigError: an option has an unknown name or a value out of range, or a part does not fit.

    Source: Hu et al., "ZigMa", ECCV 2024, section 4.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        *,
        scan: str | ScanOrder,
        mixer: nn.Module | None = None,
        cross: nn.Module | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(dim, cond_dim, channels_first=False)
        expect_size("cond_dim", cond_dim)
        self.scan = expect_scan(scan)
        self.norm = make_norm("rms", dim)
        self.drop_path = DropPath(drop_path)
        self.mixer = MambaMixer(dim) if mixer is None else expect_mixer(mixer)
        self.cross = None if cross is None else expect_part("cross", cross, ("tokens", "context"))
        self.modulation = AdaLN(dim, cond_dim, steps=1 if cross is None else 2)

    def forward(
        self, x: Tensor, cond: Tensor, residual: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            x: (B, H, W, C), what the block before returned.
            cond: (B, cond_dim).
            residual: (B, H, W, C) in float32; None at the first block.
            context: (B, T, C), where the block attends to text.

        Returns:
            The new `x` and `residual`.

        Raises:
            ShapeError: a size does not fit, or the context is missing or unexpected.
        """
        x = self.enter(x)
        self.check_cond(cond, x.shape[0])
        if residual is not None:
            expect_shape("residual", residual, tuple(x.shape), "(B, H, W, C)", "pass what the block before returned")
        self._check_context(context)
        grid = (x.shape[1], x.shape[2])
        n, residual = add_norm(x if residual is None else self.drop_path(x), residual, self.norm)
        tokens = n.flatten(1, 2)
        order = self.scan.order_for(*grid, device=x.device)
        scan, *attention = self.modulation(cond)
        update = self.mixer(modulate(tokens, scan.shift, scan.scale), None, order=order)
        update = expect_result("mixer", update, tuple(tokens.shape), "(B, L, C)")
        tokens = gated_residual(tokens, update, scan.gate)
        if self.cross is not None:
            step = attention[0]
            update = self.cross(modulate(plain_layer_norm(tokens), step.shift, step.scale), context)
            update = expect_result("cross", update, tuple(tokens.shape), "(B, L, C)")
            tokens = gated_residual(tokens, update, step.gate)
        return tokens.unflatten(1, grid), residual

    def _check_context(self, context: Tensor | None) -> None:
        if self.cross is None and context is not None:
            came = type(context).__name__
            raise ShapeError(f"context: expected None, as the block has cross=None, got {came}; build it with cross")
        if self.cross is not None and not isinstance(context, Tensor):
            came = type(context).__name__
            raise ShapeError(f"context: expected a tensor (B, T, C), got {came}; pass the text's tokens")
