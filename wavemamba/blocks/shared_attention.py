"""The transformer block that one model uses in many places."""

from __future__ import annotations

from torch import Tensor, nn

from wavemamba.blocks.map_block import MapBlock
from wavemamba.errors import ConfigError
from wavemamba.layers import AdaLN, LayerNorm, SelfAttention, gated_residual, make_mlp, modulate
from wavemamba.layers.attention import default_heads
from wavemamba.layers.norm import plain_layer_norm
from wavemamba.layers.part_checks import expect_part, expect_result


class SharedAttention(MapBlock):
    """Transformer block with adaptive layer norm; one instance can serve every few layers of a model.

        x = x + gate_a * Attention(LN(x) * (1 + scale_a) + shift_a)
        x = x + gate_m * MLP(LN(x) * (1 + scale_m) + shift_m)

    LN has no weight and bias, eps 1e-6, and the six vectors are `Linear(SiLU(cond))`. With `cond_dim=None` LN has
    weight and bias, and there is no modulation.

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.
        num_heads: a divisor of C; None: the largest one up to 16.
        mlp_ratio: hidden width of the MLP as a multiple of C.
        gated_mlp: use the gated MLP.
        attention: (B, L, C) -> (B, L, C), instead of `SelfAttention`, then without `num_heads`.
        mlp: (..., C) -> (..., C), instead of the MLP of `mlp_ratio` and `gated_mlp`, then without these.
        channels_first: take and return (B, C, H, W).

    Raises:
        ConfigError: the heads do not divide the width, the MLP has no hidden width, a part cannot be called as one, or
            comes with options that it makes useless.

    Source: Phung et al., "DiMSUM", 2024, section 4.3; Peebles and Xie, "Scalable diffusion models with transformers".
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int | None = None,
        *,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        gated_mlp: bool = True,
        attention: nn.Module | None = None,
        mlp: nn.Module | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__(dim, cond_dim, channels_first=channels_first)
        if attention is None:
            self.attention: nn.Module = SelfAttention(dim, default_heads(dim, 16) if num_heads is None else num_heads)
        elif num_heads is not None:
            raise ConfigError(f"num_heads: expected None with attention=, got {num_heads}; give the part its heads")
        else:
            self.attention = expect_part("attention", attention, ("x",))
        if mlp is None:
            self.mlp = make_mlp(dim, mlp_ratio, gated=gated_mlp)
        elif mlp_ratio != 4.0 or not gated_mlp:
            raise ConfigError(
                f"mlp_ratio, gated_mlp: expected neither with mlp=, got {mlp_ratio}, {gated_mlp}; give them to the part"
            )
        else:
            self.mlp = expect_part("mlp", mlp, ("x",))
        self.modulation = None if cond_dim is None else AdaLN(dim, cond_dim, steps=2)
        self.norms = nn.ModuleList(LayerNorm(dim, eps=1e-6) for _ in range(2 if cond_dim is None else 0))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Attend over all tokens of (B, H, W, C), with cond (B, cond_dim); returns (B, H, W, C).

        Raises:
            ShapeError: a size does not fit, or the condition is missing or unexpected.
        """
        x = self.enter(x)
        self.check_cond(cond, x.shape[0])
        grid, tokens = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        if self.modulation is None or cond is None:
            tokens = tokens + self._run("attention", self.norms[0](tokens))
            tokens = tokens + self._run("mlp", self.norms[1](tokens))
        else:
            attention, mlp = self.modulation(cond)
            update = self._run("attention", modulate(plain_layer_norm(tokens), attention.shift, attention.scale))
            tokens = gated_residual(tokens, update, attention.gate)
            update = self._run("mlp", modulate(plain_layer_norm(tokens), mlp.shift, mlp.scale))
            tokens = gated_residual(tokens, update, mlp.gate)
        return self.leave(tokens.unflatten(1, grid))

    def _run(self, name: str, tokens: Tensor) -> Tensor:
        part = self.attention if name == "attention" else self.mlp
        return expect_result(name, part(tokens), tuple(tokens.shape), "(B, L, C)")
