"""`mamba_ssm.ops.selective_scan_interface`: the scan and the inner part of a Mamba block, (B, D, L) layout.

Real `A` with input-dependent `B` and `C` runs on `wavemamba.ops.selective_scan` and its kernels. Complex `A`, and `B`
or `C` that do not depend on the input, have no kernel: they run in vectorised PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.dtypes import accumulation_dtype, widest_dtype
from wavemamba.ops import causal_conv1d, selective_scan
from wavemamba.ops.recurrence import linear_recurrence

__all__ = [
    "bimamba_inner_fn",
    "bimamba_inner_ref",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "rms_norm_forward",
    "selective_scan_fn",
    "selective_scan_ref",
]

Scan = Callable[..., Any]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """The selective scan; see `wavemamba.ops.selective_scan` for the equation.

    Args:
        u: (B, D, L), real.
        delta: (B, D, L), real.
        A: (D, N), real or complex.
        B: (D, N) like `A`; or real (B, N, L) or (B, G, N, L), for complex `A` (..., 2 L) with real and imaginary parts
            side by side.
        C: as `B`.
        D: (D,).
        z: (B, D, L).
        delta_bias: (D,).
        delta_softplus: apply softplus to the step size.
        return_last_state: also return the state after the last step.

    Returns:
        (B, D, L) in the dtype of `u`; with `return_last_state` also (B, D, N) in float32, or complex64. Unlike the
        package's, it has a gradient.
    """
    if A.is_complex() or B.dim() == 2 or C.dim() == 2:
        y, state = _scan_anything(u, delta, A, B, C, D, z, delta_bias, delta_softplus, linear_recurrence)
    else:
        y, state = selective_scan(
            u.mT,
            delta.mT,
            A,
            B.movedim(-1, 1),
            C.movedim(-1, 1),
            D,
            None if z is None else z.mT,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
            return_last_state=True,
        )
    return (y.mT, state) if return_last_state else y.mT


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """`selective_scan_fn` as a plain loop over the steps: the definition."""
    y, state = _scan_anything(u, delta, A, B, C, D, z, delta_bias, delta_softplus, _step_by_step)
    return (y.mT, state) if return_last_state else y.mT


def _step_by_step(decay: Tensor, drive: Tensor) -> Tensor:
    states = [drive[:, 0]]
    for step in range(1, drive.shape[1]):
        states.append(decay[:, step] * states[-1] + drive[:, step])
    return torch.stack(states, dim=1)


def _scan_anything(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    recurrence: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Every form of A, B and C, channels last: y (B, L, D) and the last state (B, D, N)."""
    wide = accumulation_dtype(widest_dtype(u, delta))
    x, d = u.mT.to(wide), delta.mT.to(wide)
    if delta_bias is not None:
        d = d + delta_bias.to(wide)
    if delta_softplus:
        d = F.softplus(d)
    width, paired = A.shape[0], A.is_complex()
    decay = torch.exp(d[..., None] * A)
    states = recurrence(decay, (d * x)[..., None] * _of_each_channel(B, width, wide, paired))
    y = (states * _of_each_channel(C, width, wide, paired)).sum(-1)
    if paired:  # every state stands for itself and its conjugate
        y = 2 * y.real
    if D is not None:
        y = y + D.to(wide) * x
    if z is not None:
        y = y * F.silu(z.mT.to(wide))
    return y.to(u.dtype), states[:, -1]


def _of_each_channel(projection: Tensor, width: int, wide: torch.dtype, paired: bool) -> Tensor:
    """A projection as it meets the states: (D, N), (B, L, 1, N) or (B, L, D, N)."""
    if projection.dim() == 2:
        return projection if projection.is_complex() else projection.to(wide)
    projection = projection.to(wide)
    if paired:
        projection = torch.view_as_complex(projection.unflatten(-1, (-1, 2)).contiguous())
    steps = projection.movedim(-1, 1)
    if steps.dim() == 3:
        return steps.unsqueeze(2)
    return steps.repeat_interleave(width // steps.shape[2], dim=2)


def rms_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-6, is_rms_norm: bool = True
) -> Tensor:
    """Norm over the last axis, in float32: `x / sqrt(mean(x^2) + eps) * weight + bias`; or the layer norm."""
    wide = accumulation_dtype(x.dtype)
    if not is_rms_norm:
        shift = None if bias is None else bias.to(wide)
        return F.layer_norm(x.to(wide), weight.shape, weight.to(wide), shift, eps).to(x.dtype)
    y = F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps)
    return (y if bias is None else y + bias.to(wide)).to(x.dtype)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """What a Mamba block does after `in_proj`: convolution, projections, scan, output projection.

    Args:
        xz: (B, 2 D, L).
        conv1d_weight: (D, 1, width).
        conv1d_bias: (D,).
        x_proj_weight: (R + 2 N, D); for complex `A` R + 4 N.
        delta_proj_weight: (D, R).
        out_proj_weight: (C, D).
        out_proj_bias: (C,).
        A: (D, N), real or complex.
        B: None: computed from the input; else as `selective_scan_fn` takes it.
        C: as `B`.
        D: (D,).
        delta_bias: (D,).
        B_proj_bias: (N,), added to a computed `B`.
        C_proj_bias: (N,), added to a computed `C`.
        delta_softplus: apply softplus to the step size.
        checkpoint_lvl: accepted; memory is what autograd keeps.
        b_rms_weight: (N,), an RMS norm of `B`.
        c_rms_weight: (N,), an RMS norm of `C`.
        dt_rms_weight: (D,), an RMS norm of the step size before its bias.
        b_c_dt_rms_eps: of these norms.

    Returns:
        (B, L, C).
    """
    norms = (b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps)
    scanned = _inner(
        selective_scan_fn,
        xz,
        (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight),
        [A],
        (B, C, D),
        (delta_bias, B_proj_bias, C_proj_bias),
        delta_softplus,
        norms,
    )
    return F.linear(scanned.mT, out_proj_weight, out_proj_bias)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` on the plain loop."""
    scanned = _inner(
        selective_scan_ref,
        xz,
        (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight),
        [A],
        (B, C, D),
        (delta_bias, B_proj_bias, C_proj_bias),
        delta_softplus,
    )
    return F.linear(scanned.mT, out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` without its last projection, (B, D, L); of Vision Mamba's fork."""
    return _inner(
        selective_scan_fn,
        xz,
        (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight),
        [A],
        (B, C, D),
        (delta_bias, B_proj_bias, C_proj_bias),
        delta_softplus,
    )


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` with a second scan from the last step to the first, whose state matrix is `A_b`, added.

    Of Vision Mamba's fork (`bimamba_type="v1"`).
    """
    scanned = _inner(
        selective_scan_fn,
        xz,
        (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight),
        [A, A_b],
        (B, C, D),
        (delta_bias, B_proj_bias, C_proj_bias),
        delta_softplus,
    )
    return F.linear(scanned.mT, out_proj_weight, out_proj_bias)


def bimamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`bimamba_inner_fn` on the plain loop."""
    scanned = _inner(
        selective_scan_ref,
        xz,
        (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight),
        [A, A_b],
        (B, C, D),
        (delta_bias, B_proj_bias, C_proj_bias),
        delta_softplus,
    )
    return F.linear(scanned.mT, out_proj_weight, out_proj_bias)


def _inner(
    scan: Scan,
    xz: Tensor,
    weights: tuple[Tensor, Tensor | None, Tensor, Tensor],
    directions: list[Tensor],
    matrices: tuple[Tensor | None, Tensor | None, Tensor | None],
    biases: tuple[Tensor | None, Tensor | None, Tensor | None],
    softplus: bool,
    norms: tuple[Tensor | None, Tensor | None, Tensor | None, float] = (None, None, None, 1e-6),
) -> Tensor:
    """The gated scan, (B, D, L): one for each A of `directions`, the second backwards, added."""
    conv_weight, conv_bias, x_proj, delta_proj = weights
    B, C, D = matrices
    delta_bias, B_bias, C_bias = biases
    B_norm, C_norm, delta_norm, eps = norms
    A = directions[0]
    numbers = A.shape[1] * (2 if A.is_complex() else 1)
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d(x.mT, conv_weight.squeeze(1), conv_bias, activation="silu")
    projected = F.linear(x, x_proj)
    delta = F.linear(projected[..., : delta_proj.shape[1]], delta_proj)
    if delta_norm is not None:
        delta = rms_norm_forward(delta, delta_norm, None, eps)
    if B is None:
        B = _computed(projected.narrow(-1, delta_proj.shape[1], numbers), B_bias, B_norm, eps, A)
    if C is None:
        C = _computed(projected[..., -numbers:], C_bias, C_norm, eps, A)
    y: Tensor = scan(x.mT, delta.mT, A, B, C, D, z, delta_bias, softplus)
    for other in directions[1:]:
        flipped = [t if t.dim() == 2 else _flip(t, other) for t in (B, C)]
        back: Tensor = scan(x.mT.flip(-1), delta.mT.flip(-1), other, *flipped, D, z.flip(-1), delta_bias, softplus)
        y = y + back.flip(-1)
    return y


def _computed(values: Tensor, bias: Tensor | None, norm: Tensor | None, eps: float, A: Tensor) -> Tensor:
    """(B, L, N) to what the scan takes, (B, N, L); for complex A (B, L, 2 N) to (B, N, 2 L)."""
    if bias is not None:
        values = values + bias.to(values.dtype)
    if norm is not None:
        values = rms_norm_forward(values, norm, None, eps)
    if not A.is_complex():
        return values.mT
    return values.unflatten(-1, (-1, 2)).transpose(1, 2).flatten(2)


def _flip(projection: Tensor, A: Tensor) -> Tensor:
    if not A.is_complex():
        return projection.flip(-1)
    return projection.unflatten(-1, (-1, 2)).flip(-2).flatten(-2)
