"""The ZigMa block: a modulated Mamba along one path, and attention to text."""

from __future__ import annotations

from torch import Tensor, nn

from wavemamba.layers import AdaLN, DropPath, MambaMixer, add_norm, gated_residual, make_norm, modulate
from wavemamba.layers.attention import attend
from wavemamba.layers.norm import plain_layer_norm
from wavemamba.scans import ScanOrder


class CrossAttention(nn.Module):
    """Attention of tokens to a context: `Linear(attend(q(x), k(context), v(context)))`, q, k and v without bias.

    Args:
        dim: width C.
        num_heads: heads.
        head_dim: width of a head.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.q, self.k, self.v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.proj = nn.Linear(inner, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map (B, L, C), with a context (B, T, C), to (B, L, C)."""
        y: Tensor = self.proj(attend(self.q(x), self.k(context), self.v(context), self.num_heads))
        return y


class ZigMaBlock(nn.Module):
    """Pre-norm block that carries `(x, residual)` along the depth.

        residual = residual + drop_path(x);  n = RMSNorm(residual)
        x = n + gate_s * Mamba(n * (1 + scale_s) + shift_s)
        x = x + gate_a * CrossAttention(LN(x) * (1 + scale_a) + shift_a, context),    with text alone

    Args:
        dim: width C.
        cond_dim: width of the condition.
        scan: the order that the mixer walks.
        mixer: called as `mixer(tokens, None, order=order)`; None: `MambaMixer(dim)`.
        cross: called as `cross(tokens, context)`; None: no text.
        drop_path: probability in [0, 1) that training drops `x` of a sample before it is added to the residual.

    Source: Hu et al., "ZigMa", ECCV 2024, section 4.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        *,
        scan: ScanOrder,
        mixer: nn.Module | None = None,
        cross: nn.Module | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.scan = scan
        self.norm = make_norm("rms", dim)
        self.drop_path = DropPath(drop_path)
        self.mixer = MambaMixer(dim) if mixer is None else mixer
        self.cross = cross
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
        """
        height, width = x.shape[1:3]
        n, residual = add_norm(x if residual is None else self.drop_path(x), residual, self.norm)
        tokens = n.flatten(1, 2)
        order = self.scan.order_for(height, width, device=x.device)
        scan, *attention = self.modulation(cond)
        update = self.mixer(modulate(tokens, scan.shift, scan.scale), None, order=order)
        tokens = gated_residual(tokens, update, scan.gate)
        if self.cross is not None:
            step = attention[0]
            update = self.cross(modulate(plain_layer_norm(tokens), step.shift, step.scale), context)
            tokens = gated_residual(tokens, update, step.gate)
        return tokens.unflatten(1, (height, width)), residual
