"""The transformer block that one model uses in many places."""

from __future__ import annotations

from torch import Tensor, nn

from wavemamba.blocks.mamba_step import check_cond, check_map
from wavemamba.layers import AdaLN, LayerNorm, SelfAttention, gated_residual, make_mlp, modulate
from wavemamba.layers.norm import plain_layer_norm


class SharedAttention(nn.Module):
    """Transformer block with adaptive layer norm; one instance can serve every few layers of a model.

        x = x + gate_a * Attention(LN(x) * (1 + scale_a) + shift_a)
        x = x + gate_m * MLP(LN(x) * (1 + scale_m) + shift_m)

    LN has no weight and bias, eps 1e-6, and the six vectors are `Linear(SiLU(cond))`. With `cond_dim=None` LN has
    weight and bias, and there is no modulation.

    Args:
        dim: width C.
        num_heads: a divisor of C.
        cond_dim: width of the condition, or None.
        mlp_ratio: hidden width of the MLP as a multiple of C.
        gated_mlp: use the gated MLP.

    Raises:
        ConfigError: the heads do not divide the width, or the MLP has no hidden width.

    Source: Phung et al., "DiMSUM", 2024, section 4.3; Peebles and Xie, "Scalable diffusion models with transformers".
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 16,
        cond_dim: int | None = None,
        *,
        mlp_ratio: float = 4.0,
        gated_mlp: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.cond_dim = dim, cond_dim
        self.attention = SelfAttention(dim, num_heads)
        self.mlp = make_mlp(dim, mlp_ratio, gated=gated_mlp)
        self.modulation = None if cond_dim is None else AdaLN(dim, cond_dim, steps=2)
        self.norms = nn.ModuleList(LayerNorm(dim, eps=1e-6) for _ in range(2 if cond_dim is None else 0))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Attend over all tokens of (B, H, W, C), with cond (B, cond_dim); returns (B, H, W, C).

        Raises:
            ShapeError: a size does not fit, or the condition is missing or unexpected.
        """
        height, width = check_map(x, self.dim)
        check_cond(cond, self.cond_dim, x.shape[0])
        tokens = x.flatten(1, 2)
        if self.modulation is None or cond is None:
            tokens = tokens + self.attention(self.norms[0](tokens))
            tokens = tokens + self.mlp(self.norms[1](tokens))
        else:
            attention, mlp = self.modulation(cond)
            update = self.attention(modulate(plain_layer_norm(tokens), attention.shift, attention.scale))
            tokens = gated_residual(tokens, update, attention.gate)
            update = self.mlp(modulate(plain_layer_norm(tokens), mlp.shift, mlp.scale))
            tokens = gated_residual(tokens, update, mlp.gate)
        return tokens.unflatten(1, (height, width))
