"""`mamba_ssm.ops.triton.ssd_combined`: Mamba-2's scan, alone and with what stands around it."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wavemamba.compat.mamba_ssm.ops.selective_scan_interface import selective_scan_ref
from wavemamba.compat.mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
from wavemamba.errors import ConfigError
from wavemamba.ops import causal_conv1d, ssd_scan, use_backend

__all__ = [
    "mamba_chunk_scan",
    "mamba_chunk_scan_combined",
    "mamba_conv1d_scan_ref",
    "mamba_split_conv1d_scan_combined",
    "mamba_split_conv1d_scan_ref",
    "ssd_chunk_scan_combined_ref",
    "ssd_selective_scan",
]

NO_LIMIT = (0.0, float("inf"))


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Any:
    """The scan of Mamba-2; see `wavemamba.ops.ssd_scan` for the equation.

    Args:
        x: (B, L, H, P).
        dt: (B, L, H).
        A: (H,).
        B: (B, L, G, N).
        C: (B, L, G, N).
        chunk_size: steps that one matrix product takes.
        D: (H,) or (H, P).
        z: (B, L, H, P).
        dt_bias: (H,).
        initial_states: (B, H, P, N).
        seq_idx: (B, L), the sequence of each step.
        cu_seqlens: (S + 1,), where each of S sequences begins, for `return_varlen_states` with B = 1.
        dt_softplus: apply softplus to the step size.
        dt_limit: range that the step size is clamped to.
        return_final_states: also return the state after the last step, (B, H, P, N).
        return_varlen_states: also return the state at the end of each sequence, (S, H, P, N).
        state_dtype: accepted; states are float32.

    Returns:
        (B, L, H, P) in the dtype of `x`, and the states asked for.

    Raises:
        ConfigError: states of sequences without `cu_seqlens`, or with B > 1.
    """
    y, final = ssd_scan(
        x,
        dt,
        A,
        B,
        C,
        D,
        z,
        dt_bias=dt_bias,
        dt_softplus=dt_softplus,
        dt_limit=dt_limit,
        initial_state=initial_states,
        seq_idx=seq_idx,
        chunk_size=chunk_size,
        return_last_state=True,
    )
    found: list[Tensor] = [y]
    if return_final_states:
        found.append(final)
    if return_varlen_states:
        if cu_seqlens is None or x.shape[0] != 1:
            raise ConfigError("cu_seqlens: expected the sequences' starts and a batch of 1 with return_varlen_states")
        found.append(_states_at_ends(x, dt, A, B, C, dt_bias, initial_states, cu_seqlens, dt_softplus, dt_limit))
    return y if len(found) == 1 else tuple(found)


def _states_at_ends(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt_bias: Tensor | None,
    initial: Tensor | None,
    cu_seqlens: Tensor,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
) -> Tensor:
    """The state at the end of every packed sequence, each scanned alone: (S, H, P, N)."""
    borders = cu_seqlens.tolist()
    states = []
    for number, (start, end) in enumerate(itertools.pairwise(borders)):
        if start == end:
            states.append(x.new_zeros(1, x.shape[2], x.shape[3], B.shape[3], dtype=torch.float32))
            continue
        _, state = ssd_scan(
            x[:, start:end],
            dt[:, start:end],
            A,
            B[:, start:end],
            C[:, start:end],
            dt_bias=dt_bias,
            dt_softplus=dt_softplus,
            dt_limit=dt_limit,
            initial_state=initial if number == 0 else None,
            return_last_state=True,
        )
        states.append(state)
    return torch.cat(states)


def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """`mamba_chunk_scan_combined` without states."""
    y: Tensor = mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus=dt_softplus)
    return y


ssd_chunk_scan_combined_ref = mamba_chunk_scan


def ssd_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
) -> Tensor:
    """The same scan by its plain loop; `dt` may also be (B, L, H, P), `A` (H, P, N), `dt_bias` (H, P)."""
    heads, width = x.shape[2:]
    states = B.shape[-1]
    if dt.dim() == 3 and A.dim() == 1:
        y: Tensor = ssd_scan(
            x, dt, A, B, C, D, z, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit, backend="reference"
        )
        return y
    sizes = dt.unsqueeze(-1).expand(*dt.shape, width) if dt.dim() == 3 else dt
    if dt_bias is not None:
        sizes = sizes + (dt_bias.unsqueeze(-1) if dt_bias.dim() == 1 else dt_bias)
    sizes = F.softplus(sizes.float()) if dt_softplus else sizes.float()
    sizes = sizes.clamp(*dt_limit)
    rates = A[:, None, None].expand(heads, width, states) if A.dim() == 1 else A
    skip = None if D is None else (D[:, None].expand(heads, width) if D.dim() == 1 else D).reshape(-1).float()
    gate = None if z is None else z.flatten(2).mT
    out = selective_scan_ref(
        x.flatten(2).mT,
        sizes.flatten(2).mT,
        rates.flatten(0, 1).float(),
        B.movedim(1, -1),
        C.movedim(1, -1),
        skip,
        gate,
    )
    return out.mT.unflatten(2, (heads, width)).to(x.dtype)


def mamba_conv1d_scan_ref(
    xBC: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    activation: str | None = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
) -> Tensor:
    """Convolution of `x, B, C` side by side, (B, L, H P + 2 G N), then the scan by its plain loop: (B, L, H, P)."""
    heads, width = A.shape[0], _head_width(headdim, D)
    xBC = causal_conv1d(xBC, conv1d_weight, conv1d_bias, activation=_silu(activation), backend="reference")
    x, B, C = _split_convolved(xBC, heads * width, ngroups, heads)
    gate = z if z is None or z.dim() == 4 else z.unflatten(-1, (heads, -1))
    return ssd_selective_scan(x, dt, A, B, C, D, gate, dt_bias, dt_softplus, dt_limit)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Any:
    """What a Mamba-2 block does after `in_proj`: convolution, scan, gated norm, output projection.

    Args:
        zxbcdt: (B, L, 2 M + 2 H P + 2 G N + H): the MLP's halves (M may be 0), gate, x, B, C and step size.
        conv1d_weight: (H P + 2 G N, width).
        conv1d_bias: (H P + 2 G N,).
        dt_bias: (H,).
        A: (H,).
        D: (H,), with `headdim` given; or (H, P).
        chunk_size: steps that one matrix product takes.
        initial_states: (B, H, P, N).
        seq_idx: (B, L).
        dt_limit: range that the step size is clamped to, after softplus.
        return_final_states: also return the last state.
        activation: of the convolution.
        rmsnorm_weight: (H P,), of the gated norm; None: gate alone.
        rmsnorm_eps: of the norm.
        outproj_weight: (C, M + H P), or None.
        outproj_bias: (C,).
        headdim: P; None: read from `D` of shape (H, P).
        ngroups: G.
        norm_before_gate: norm first, then gate.
        state_dtype: accepted; states are float32.

    Returns:
        (B, L, C), or without a projection (B, L, M + H P); with `return_final_states` also (B, H, P, N).

    Raises:
        ConfigError: neither `headdim` nor `D` (H, P) tells P.
    """
    heads, width = A.shape[0], _head_width(headdim, D)
    inner = heads * width
    convolved = conv1d_weight.shape[0]
    mlp = (zxbcdt.shape[-1] - inner - convolved - heads) // 2
    gate0, x0, z, xBC, dt = zxbcdt.split([mlp, mlp, inner, convolved, heads], dim=-1)
    x, B, C = _split_convolved(
        causal_conv1d(xBC, conv1d_weight, conv1d_bias, activation=_silu(activation), seq_idx=seq_idx),
        inner,
        ngroups,
        heads,
    )
    y, final = ssd_scan(
        x,
        dt,
        A,
        B,
        C,
        D,
        z.unflatten(-1, (heads, width)) if rmsnorm_weight is None else None,
        dt_bias=dt_bias,
        dt_softplus=True,
        dt_limit=dt_limit,
        initial_state=initial_states,
        seq_idx=seq_idx,
        chunk_size=chunk_size,
        return_last_state=True,
    )
    y = y.flatten(2)
    if rmsnorm_weight is not None:
        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, inner // ngroups, norm_before_gate)
    if mlp > 0:
        y = torch.cat([F.silu(gate0) * x0, y], dim=-1)
    if outproj_weight is not None:
        y = F.linear(y.to(outproj_weight.dtype), outproj_weight, outproj_bias)
    return (y, final) if return_final_states else y


def mamba_split_conv1d_scan_ref(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    chunk_size: int,
    dt_limit: tuple[float, float] = NO_LIMIT,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor:
    """`mamba_split_conv1d_scan_combined` on the plain loops."""
    with use_backend("reference"):
        y: Tensor = mamba_split_conv1d_scan_combined(
            zxbcdt,
            conv1d_weight,
            conv1d_bias,
            dt_bias,
            A,
            D,
            chunk_size,
            dt_limit=dt_limit,
            activation=activation,
            rmsnorm_weight=rmsnorm_weight,
            rmsnorm_eps=rmsnorm_eps,
            outproj_weight=outproj_weight,
            outproj_bias=outproj_bias,
            headdim=headdim,
            ngroups=ngroups,
            norm_before_gate=norm_before_gate,
        )
    return y


def _head_width(headdim: int | None, D: Tensor | None) -> int:
    if headdim is not None:
        return headdim
    if D is None or D.dim() != 2:
        raise ConfigError("headdim: expected the width of a head, got None and no D of shape (H, P)")
    return D.shape[1]


def _silu(activation: str | None) -> Any:
    if activation not in (None, "silu", "swish"):
        raise ConfigError(f"activation: expected None, 'silu' or 'swish', got {activation!r}")
    return None if activation is None else "silu"


def _split_convolved(xBC: Tensor, inner: int, groups: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    states = (xBC.shape[-1] - inner) // 2
    x, B, C = xBC.split([inner, states, states], dim=-1)
    return x.unflatten(-1, (heads, -1)), B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1))
