"""The transformer block that one model uses in many places."""

from __future__ import annotations

from torch import Tensor, nn

from wavemamba.blocks.map_block import MapBlock
from wavemamba.errors import ConfigError
from wavemamba.layers import AdaLN, LayerNorm, SelfAttention, gated_residual, make_mlp, modulate
from wavemamba.layers.attention import ATTENTION_KINDS, AttentionKind, default_heads
from wavemamba.layers.norm import plain_layer_norm
from wavemamba.layers.part_checks import expect_part, expect_result
from wavemamba.names import choose


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
        mode: how the tokens attend to each other: "full", "window" (`WindowAttention()`) or "linear_attention"
            (`LinearAttention()`), both of time and memory linear in the tokens.
        mlp_ratio: hidden width of the MLP as a multiple of C.
        gated_mlp: use the gated MLP.
        attention: an `Attention`, (B, L, C) -> (B, L, C), instead of `SelfAttention`, then without `num_heads` and
            `mode`: `SelfAttention(dim, heads, WindowAttention(16))`, for example.
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
        mode: AttentionKind = "full",
        mlp_ratio: float = 4.0,
        gated_mlp: bool = True,
        attention: nn.Module | None = None,
        mlp: nn.Module | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__(dim, cond_dim, channels_first=channels_first)
        kind = choose("mode", mode, ATTENTION_KINDS)
        if attention is None:
            heads = default_heads(dim, 16) if num_heads is None else num_heads
            attention = SelfAttention(dim, heads, ATTENTION_KINDS[kind]())
        elif num_heads is not None:
            raise ConfigError(f"num_heads: expected None with attention=, got {num_heads}; give the part its heads")
        elif kind != "full":
            raise ConfigError(f"mode: expected 'full' with attention=, got {kind!r}; give the part its attend=")
        # Decided here, while the part is what the caller built: what wraps it later may hide its attributes.
        self.gives_grid = bool(getattr(attention, "takes_grid", False))
        self.attention = expect_part("attention", attention, ("x",), ("grid",) if self.gives_grid else ())
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
        """Mix the tokens of (B, H, W, C), with cond (B, cond_dim); returns (B, H, W, C).

        Raises:
            ShapeError: a size does not fit, or the condition is missing or unexpected.
        """
        x = self.enter(x)
        self.check_cond(cond, x.shape[0])
        grid, tokens = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        if self.modulation is None or cond is None:
            tokens = tokens + self._attend(self.norms[0](tokens), grid)
            tokens = tokens + self._feed_forward(self.norms[1](tokens))
        else:
            attention, mlp = self.modulation(cond)
            update = self._attend(modulate(plain_layer_norm(tokens), attention.shift, attention.scale), grid)
            tokens = gated_residual(tokens, update, attention.gate)
            update = self._feed_forward(modulate(plain_layer_norm(tokens), mlp.shift, mlp.scale))
            tokens = gated_residual(tokens, update, mlp.gate)
        return self.leave(tokens.unflatten(1, grid))

    def _attend(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        result = self.attention(tokens, grid=grid) if self.gives_grid else self.attention(tokens)
        return expect_result("attention", result, tuple(tokens.shape), "(B, L, C)")

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        return expect_result("mlp", self.mlp(tokens), tuple(tokens.shape), "(B, L, C)")
