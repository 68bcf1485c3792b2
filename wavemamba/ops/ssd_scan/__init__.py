"""State-space-dual scan (Mamba-2): signature, checks, dispatch."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch.nn.functional as F
from torch import Tensor, float32

from wavemamba.checks import expect_shape, expect_size
from wavemamba.dtypes import accumulation_dtype, autocast_off, widest_dtype
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.ops.dispatch.backend import Backend, Case, resolve, runs_everything
from wavemamba.ops.dispatch.operands import expect_operands
from wavemamba.ops.packed import expect_seq_idx
from wavemamba.ops.ssd_scan import fla, mamba_ssm, reference, torch

__all__ = ["BACKENDS", "ssd_scan"]

BACKENDS: tuple[Backend, ...] = (
    Backend("mamba_ssm", mamba_ssm.refuses, mamba_ssm.run),
    Backend("fla", fla.refuses, fla.run),
    Backend("torch", runs_everything, torch.run),
    Backend("reference", runs_everything, reference.run, slow_on_gpu=True),
)


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    *,
    dt_bias: Tensor | None = ...,
    dt_softplus: bool = ...,
    dt_limit: tuple[float, float] = ...,
    initial_state: Tensor | None = ...,
    return_last_state: Literal[False] = ...,
    seq_idx: Tensor | None = ...,
    chunk_size: int = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    *,
    dt_bias: Tensor | None = ...,
    dt_softplus: bool = ...,
    dt_limit: tuple[float, float] = ...,
    initial_state: Tensor | None = ...,
    return_last_state: Literal[True],
    seq_idx: Tensor | None = ...,
    chunk_size: int = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    *,
    dt_bias: Tensor | None = ...,
    dt_softplus: bool = ...,
    dt_limit: tuple[float, float] = ...,
    initial_state: Tensor | None = ...,
    return_last_state: bool,
    seq_idx: Tensor | None = ...,
    chunk_size: int = ...,
    backend: str = ...,
) -> Any: ...


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    seq_idx: Tensor | None = None,
    chunk_size: int = 64,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """State-space recurrence of Mamba-2, whose decay is one number a head.

    With `d_l = dt_l + dt_bias`, through softplus where asked and clamped to `dt_limit`, for every head h:

        H_l = exp(d_l A) H_{l-1} + d_l x_l B_l^T
        y_l = H_l C_l + D x_l,   then y_l * SiLU(z_l) where there is a gate

    States, exponentials and sums are float32 whatever the inputs (float64 for float64 inputs); the packages' kernels
    round states of 16-bit inputs to 16 bits. Where "reference" is finite, "torch" is, and they agree: an infinite step
    or a NaN reaches neither earlier steps nor another sequence.

    Args:
        x: (B, L, H, P), the input.
        dt: (B, L, H), the step size.
        A: (H,), the decay rate of each head, negative for a decaying state.
        B: (B, L, G, N), input projection, one for each of G groups of H / G neighbouring heads.
        C: (B, L, G, N), output projection.
        D: (H,) or (H, P), the skip connection.
        z: (B, L, H, P), the gate.
        dt_bias: (H,), added to `dt` before the softplus.
        dt_softplus: apply `log(1 + exp(.))` to the step size.
        dt_limit: range that the step size is clamped to, after softplus.
        initial_state: (B, H, P, N), the state before the first step; zero where absent.
        return_last_state: also return the state after the last step.
        seq_idx: (B, L) int64 or int32, the sequence of each step: the state begins at zero where it changes, and the
            initial state enters the first sequence.
        chunk_size: steps that one matrix product takes, >= 1, rounded up to a power of two; the result does not depend
            on it.
        backend: "auto", "reference", "torch", "mamba_ssm" or "fla".

    Returns:
        `y` (B, L, H, P) in the dtype of `x`; with `return_last_state` the pair `(y, last_state)`, `last_state`
        (B, H, P, N) in the dtype of the sums.

    Raises:
        ShapeError: a size or dtype does not fit.
        ConfigError: `chunk_size` or `dt_limit` is out of range.
        BackendUnavailable: the named backend cannot run this case.

    Source: Dao and Gu, "Transformers are SSMs", 2024, definition 2.1 and section 6.
    """
    _check(x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx)
    expect_size("chunk_size", chunk_size)
    if not dt_limit[0] <= dt_limit[1]:
        raise ConfigError(f"dt_limit: expected (smallest, largest), got {dt_limit!r}")
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    wide = accumulation_dtype(widest_dtype(*tensors))
    sizes = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide)
    if dt_softplus:
        sizes = F.softplus(sizes)
    if not dt_softplus or dt_limit != (0.0, math.inf):  # what softplus gives is positive
        sizes = sizes.clamp(*dt_limit)
    uses = {"seq_idx": seq_idx is not None, "float32 products": x.dtype == float32}
    case = Case(
        op="ssd_scan",
        device=x.device.type,
        dtype=widest_dtype(*tensors),
        features=tuple(name for name, used in uses.items() if used),
        sizes={"batch": x.shape[0]},
    )
    run = resolve(BACKENDS, case, backend)
    with autocast_off(x.device):
        y, last = run(x, sizes, A, B, C, D, z, initial_state, seq_idx, chunk_size, return_last_state)
    return (y, last) if return_last_state else y


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> None:
    expect_operands(x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, initial_state=initial_state)
    expect_shape("x", x, (None, None, None, None), "(B, L, H, P)")
    batch, length, heads, width = x.shape
    expect_shape("dt", dt, (batch, length, heads), "(B, L, H)")
    expect_shape("A", A, (heads,), "(H,)")
    expect_shape("B", B, (batch, length, None, None), "(B, L, G, N)")
    groups, states = B.shape[2:]
    expect_shape("C", C, (batch, length, groups, states), "(B, L, G, N)")
    if length < 1 or groups < 1 or heads % groups:
        raise ShapeError(
            f"x, B: expected L >= 1 and groups G that divide H = {heads}, got L = {length} and G = {groups}"
        )
    if D is not None:
        expect_shape("D", D, (heads,) if D.dim() == 1 else (heads, width), "(H,) or (H, P)")
    if z is not None:
        expect_shape("z", z, (batch, length, heads, width), "(B, L, H, P)")
    if dt_bias is not None:
        expect_shape("dt_bias", dt_bias, (heads,), "(H,)")
    if initial_state is not None:
        expect_shape("initial_state", initial_state, (batch, heads, width, states), "(B, H, P, N)")
    if seq_idx is not None:
        expect_seq_idx(seq_idx, x)
