"""`mamba_ssm.ops.triton.layernorm_gated`: norms over groups of channels, with a gate before or after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ShapeError

__all__ = ["LayerNorm", "RMSNorm", "layernorm_fn", "rms_norm_ref", "rmsnorm_fn"]


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """`norm(x) * SiLU(z)`, or with `norm_before_gate=False` `norm(x * SiLU(z))`, in float32.

    Args:
        x: (..., C).
        weight: (C,).
        bias: (C,), or None.
        z: (..., C), the gate.
        eps: added to the variance or mean square.
        group_size: channels that share a mean and variance, a divisor of C; None: all.
        norm_before_gate: norm first.
        is_rms_norm: the RMS norm instead of the layer norm.

    Returns:
        (..., C) in the dtype of `x`.

    Raises:
        ShapeError: the groups do not divide the channels.
    """
    wide, channels = accumulation_dtype(x.dtype), x.shape[-1]
    group = channels if group_size is None else group_size
    if group < 1 or channels % group:
        raise ShapeError(f"group_size: expected a divisor of C = {channels}, got {group}")
    y, gate = x.to(wide), None if z is None else F.silu(z.to(wide))
    if gate is not None and not norm_before_gate:
        y = y * gate
    grouped = y.unflatten(-1, (-1, group))
    grouped = F.rms_norm(grouped, (group,), eps=eps) if is_rms_norm else F.layer_norm(grouped, (group,), eps=eps)
    y = grouped.flatten(-2) * weight.to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """`layernorm_fn` with the RMS norm."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """The definition of `rmsnorm_fn`, in float32; with `upcast=False` `x` and `z` stay in their dtypes."""
    y, gate = (x.float(), None if z is None else z.float()) if upcast else (x, z)
    if gate is not None and not norm_before_gate:
        y = y * F.silu(gate)
    grouped = y.unflatten(-1, (-1, group_size or x.shape[-1]))
    grouped = grouped / torch.sqrt(grouped.square().mean(-1, keepdim=True) + eps)
    y = grouped.flatten(-2) * weight.float()
    if bias is not None:
        y = y + bias.float()
    if gate is not None and norm_before_gate:
        y = y * F.silu(gate)
    return y.to(x.dtype)


class LayerNorm(nn.Module):
    """The gated layer norm; see `layernorm_fn`.

    Args:
        hidden_size: C.
        eps: added to the variance.
        group_size: channels of a group; None: all.
        norm_before_gate: norm first.
        device: of the parameters.
        dtype: of the parameters.
    """

    bias: nn.Parameter | None
    _rms = False

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        shift = None if self._rms else nn.Parameter(torch.zeros(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", shift)

    def reset_parameters(self) -> None:
        """A weight of one and a bias of zero."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Normalise (..., C), with the gate `z` (..., C) where given."""
        return layernorm_fn(x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate, self._rms)


class RMSNorm(LayerNorm):
    """The gated RMS norm, without a bias; see `layernorm_fn` and `LayerNorm`."""

    _rms = True
