"""`mamba_ssm.ops.triton.layer_norm`: norms that add the residual first, in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError

__all__ = ["RMSNorm", "layer_norm_fn", "layer_norm_linear_fn", "layer_norm_ref", "rms_norm_fn", "rms_norm_ref"]


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Any:
    """`norm(residual + dropout(x * rowscale) + dropout(x1))`.

    Args:
        x: (..., C).
        weight: (C,).
        bias: (C,), or None.
        residual: (..., C), added to `x`.
        x1: (..., C), a second branch that is added.
        weight1: (C,), of a second norm of the same sum.
        bias1: (C,), of the second norm.
        eps: added to the variance or mean square.
        dropout_p: probability in [0, 1), of every element of `x` and `x1`.
        rowscale: (...), a factor for each row of `x`; not together with `x1`.
        prenorm: also return the sum.
        residual_in_fp32: the first sum of a chain, where `residual` is None, is float32.
        is_rms_norm: the RMS norm instead of the layer norm.
        return_dropout_mask: also return which elements of `x` and `x1` were kept.

    Returns:
        The norm in the dtype of `x`; then, where asked for, the second norm, the sum, and both masks.

    Raises:
        ConfigError: `rowscale` together with `x1`.
    """
    if x1 is not None and rowscale is not None:
        raise ConfigError("rowscale: expected None together with x1, got both; scale x before the call")
    wide = accumulation_dtype(x.dtype)
    total = x.to(wide)
    if rowscale is not None:
        total = total * rowscale.to(wide).unsqueeze(-1)
    total, mask = _dropped(total, dropout_p)
    mask1: Tensor | None = None
    if x1 is not None:
        branch, mask1 = _dropped(x1.to(wide), dropout_p)
        total = total + branch
    if residual is not None:
        total = total + residual.to(wide)
    found = [_norm(total, weight, bias, eps, is_rms_norm).to(x.dtype)]
    if weight1 is not None:
        found.append(_norm(total, weight1, bias1, eps, is_rms_norm).to(x.dtype))
    if prenorm:
        kept = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
        found.append(total.to(kept))
    masks = (mask, mask1) if return_dropout_mask else ()
    return found[0] if len(found) == 1 and not masks else (*found, *masks)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Any:
    """`layer_norm_fn` with the RMS norm."""
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual,
        x1,
        weight1,
        bias1,
        eps,
        dropout_p,
        rowscale,
        prenorm,
        residual_in_fp32,
        True,
        return_dropout_mask,
    )


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
    *,
    is_rms_norm: bool = False,
) -> Any:
    """`layer_norm_fn` with given dropout masks; `upcast`: in float32, else in the dtypes as they are."""
    total = x.float() if upcast else x
    if rowscale is not None:
        total = total * rowscale.unsqueeze(-1)
    total = _masked(total, dropout_mask, dropout_p)
    if x1 is not None:
        total = total + _masked(x1.to(total.dtype), dropout_mask1, dropout_p)
    if residual is not None:
        total = (total + residual).to(total.dtype)
    found = [_norm(total, weight, bias, eps, is_rms_norm).to(x.dtype)]
    if weight1 is not None:
        found.append(_norm(total, weight1, bias1, eps, is_rms_norm).to(x.dtype))
    if prenorm:
        found.append(total)
    return found[0] if len(found) == 1 else tuple(found)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
) -> Any:
    """`layer_norm_ref` with the RMS norm."""
    return layer_norm_ref(
        x,
        weight,
        bias,
        residual,
        x1,
        weight1,
        bias1,
        eps,
        dropout_p,
        rowscale,
        prenorm,
        dropout_mask,
        dropout_mask1,
        upcast,
        is_rms_norm=True,
    )


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Any:
    """`layer_norm_fn`, then a linear layer: (..., C) -> (..., out); with `prenorm` also the sum."""
    y, total = layer_norm_fn(
        x,
        norm_weight,
        norm_bias,
        residual,
        eps=eps,
        prenorm=True,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )
    y = F.linear(y.to(linear_weight.dtype), linear_weight, linear_bias)
    return (y, total) if prenorm else y


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis, after the residual was added.

    Args:
        hidden_size: C.
        eps: added to the mean square.
        dropout_p: probability in [0, 1), of every element of `x` in training.
        device: of the weight.
        dtype: of the weight.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0.0 else None
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """A weight of one."""
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Any:
        """See `layer_norm_fn`."""
        return rms_norm_fn(
            x,
            self.weight,
            None,
            residual=residual,
            eps=self.eps,
            dropout_p=self.drop.p if self.drop is not None and self.training else 0.0,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )


def _norm(total: Tensor, weight: Tensor, bias: Tensor | None, eps: float, is_rms_norm: bool) -> Tensor:
    wide = torch.promote_types(total.dtype, weight.dtype)
    total, weight = total.to(wide), weight.to(wide)
    if not is_rms_norm:
        return F.layer_norm(total, weight.shape, weight, None if bias is None else bias.to(wide), eps)
    y = F.rms_norm(total, weight.shape, weight, eps)
    return y if bias is None else y + bias.to(wide)


def _dropped(x: Tensor, p: float) -> tuple[Tensor, Tensor | None]:
    if p == 0.0:
        return x, None
    mask = torch.rand(x.shape, device=x.device, dtype=torch.float32) >= p
    return _masked(x, mask, p), mask


def _masked(x: Tensor, mask: Tensor | None, p: float) -> Tensor:
    if p == 0.0:
        return x
    return F.dropout(x, p) if mask is None else x.masked_fill(~mask, 0.0) / (1.0 - p)
