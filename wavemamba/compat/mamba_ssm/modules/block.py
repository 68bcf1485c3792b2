"""`mamba_ssm.modules.block`: add the residual, norm, mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wavemamba.compat.mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn
from wavemamba.errors import ConfigError

__all__ = ["Block"]


class Block(nn.Module):
    """`residual = residual + hidden; hidden = mixer(norm(residual))`, then the same with an MLP where there is one.

    Args:
        dim: width C.
        mixer_cls: makes the mixer of a width.
        mlp_cls: makes the MLP of a width; `nn.Identity`: none.
        norm_cls: makes the norms of a width.
        fused_add_norm: sum and norm in float32 whatever the dtype.
        residual_in_fp32: keep the residual in float32.

    Raises:
        ConfigError: `fused_add_norm` with a norm other than `nn.LayerNorm` and `RMSNorm`.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        mlp_cls: Callable[..., nn.Module],
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.norm = norm_cls(dim)
        self.mixer = mixer_cls(dim)
        self.mlp: nn.Module | None = None
        if mlp_cls is not nn.Identity:
            self.norm2 = norm_cls(dim)
            self.mlp = mlp_cls(dim)
        if fused_add_norm and not isinstance(self.norm, nn.LayerNorm | RMSNorm):
            raise ConfigError(
                f"norm_cls: expected nn.LayerNorm or RMSNorm with fused_add_norm, got {type(self.norm).__name__}"
            )

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: Any = None, **mixer_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Run on (B, L, C); `residual` is what the block before returned, None at the first one."""
        hidden_states, residual = add_and_norm(self, self.norm, hidden_states, residual)
        hidden_states = self.mixer(hidden_states, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            hidden_states, residual = add_and_norm(self, self.norm2, hidden_states, residual)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """The mixer's states."""
        allocate: Any = self.mixer.allocate_inference_cache
        return allocate(batch_size, max_seqlen, dtype=dtype, **kwargs)


class LegacyBlock(Block):
    """The block of mamba-ssm 1, which has no MLP: `Block(dim, mixer_cls, norm_cls, ...)`."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__(dim, mixer_cls, nn.Identity, norm_cls, fused_add_norm, residual_in_fp32)


def add_and_norm(owner: Any, norm: Any, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """The norm of `residual + hidden`, and this sum, as a block's or a backbone's two options say."""
    if owner.fused_add_norm:
        normed, total = layer_norm_fn(
            hidden,
            norm.weight,
            norm.bias,
            residual=residual,
            prenorm=True,
            residual_in_fp32=owner.residual_in_fp32,
            eps=norm.eps,
            is_rms_norm=isinstance(norm, RMSNorm),
        )
        return normed, total
    total = hidden if residual is None else hidden + residual
    return norm(total.to(norm.weight.dtype)), total.float() if owner.residual_in_fp32 else total
