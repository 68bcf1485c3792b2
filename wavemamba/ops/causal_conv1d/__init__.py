"""Causal depthwise convolution: signature, checks, dispatch.

Every backend is one function, `run(ConvInputs) -> y`.
"""

from __future__ import annotations

import functools
from typing import Literal, overload

from torch import Tensor

from wavemamba.checks import expect_shape
from wavemamba.dtypes import widest_dtype
from wavemamba.errors import ShapeError
from wavemamba.ops.causal_conv1d import mamba_ssm, op, reference, torch
from wavemamba.ops.causal_conv1d.op import ConvInputs
from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Backend, Case, resolve, runs_everything
from wavemamba.ops.dispatch.operands import expect_beside, expect_operands
from wavemamba.ops.packed import expect_seq_idx, last_inputs
from wavemamba.scans import expect_permutation

__all__ = ["BACKENDS", "causal_conv1d"]


BACKENDS: tuple[Backend, ...] = (
    Backend("triton", availability.triton, functools.partial(op.run, "triton")),
    Backend("mamba_ssm", mamba_ssm.refuses, mamba_ssm.run),
    Backend("numba", availability.numba, functools.partial(op.run, "numba")),
    Backend("torch", runs_everything, torch.run, slow_on_gpu=True),
    Backend("reference", runs_everything, reference.run, slow_on_gpu=True),
)


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    activation: Literal["silu", "swish"] | None = ...,
    initial_state: Tensor | None = ...,
    return_last_state: Literal[False] = ...,
    order: Tensor | None = ...,
    seq_idx: Tensor | None = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    activation: Literal["silu", "swish"] | None = ...,
    initial_state: Tensor | None = ...,
    return_last_state: Literal[True],
    order: Tensor | None = ...,
    seq_idx: Tensor | None = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu", "swish"] | None = None,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    order: Tensor | None = None,
    seq_idx: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution in which step `l` sees the steps `l - width + 1 .. l` only.

        y_l = act(bias + sum_k weight[:, k] * x_{l - width + 1 + k})

    Sums are float32 whatever the inputs (float64 for float64 inputs).

    Args:
        x: (B, L, E).
        weight: (E, width).
        bias: (E,).
        activation: None, or "silu" (also called "swish").
        initial_state: (B, width - 1, E), the inputs before the first step, oldest first; zero where absent.
        return_last_state: also return what a call with the next steps takes as its initial state.
        order: (L,) int64 or int32, a permutation: step `l` reads and writes row `order[l]`.
        seq_idx: (B, L) int64 or int32, the number of the sequence that each row belongs to; a sequence ends where row
            `order[l]` has another number than row `order[l - 1]`, and no step sees another one's inputs: they count as
            zero. The initial state belongs to the first sequence; None: all rows are one.
        backend: "auto", "reference", "torch", "numba", "triton" or "mamba_ssm".

    Returns:
        `y` (B, L, E) in the dtype of `x`; with `return_last_state` the pair `(y, last_state)`, `last_state`
        (B, width - 1, E) in the dtype of `x`: the last inputs, oldest first, of the last step's sequence, zero where it
        has fewer.

    Raises:
        ShapeError: a size or dtype does not fit, or the activation is unknown.
        BackendUnavailable: the named backend cannot run this case.

    Source: the convolution of Mamba's block, Gu and Dao, "Mamba", 2023, figure 3.
    """
    expect_operands(x=x, weight=weight, bias=bias, initial_state=initial_state)
    expect_shape("x", x, (None, None, None), "(B, L, E)", "channels come last")
    batch, length, channels = x.shape
    if length < 1 or channels < 1:
        raise ShapeError(f"x: expected (B, L, E) with L and E at least 1, got {tuple(x.shape)}; drop empty sequences")
    expect_shape("weight", weight, (channels, None), "(E, width)")
    width = weight.shape[1]
    if width < 1:
        raise ShapeError(f"weight: expected (E, width) with width at least 1, got {tuple(weight.shape)}; use one tap")
    if bias is not None:
        expect_shape("bias", bias, (channels,), "(E,)")
    if initial_state is not None:
        expect_shape("initial_state", initial_state, (batch, width - 1, channels), "(B, width - 1, E)")
    if activation not in (None, "silu", "swish"):
        raise ShapeError(f"activation: expected None, 'silu' or 'swish', got {activation!r}")

    if order is not None:
        order = expect_permutation(order, length)
        expect_beside("order", order, x)
    if seq_idx is not None:
        expect_seq_idx(seq_idx, x)
    inputs = ConvInputs(x, weight, bias, activation is not None, initial_state, order, seq_idx)
    case = Case(
        op="causal_conv1d",
        device=x.device.type,
        dtype=widest_dtype(*inputs.differentiable),
        features=tuple(name for name in ("initial_state", "order", "seq_idx") if getattr(inputs, name) is not None),
        sizes={"width": width, "channels": channels},
    )
    y: Tensor = resolve(BACKENDS, case, backend)(inputs)
    return (y, last_inputs(x, initial_state, width - 1, order, seq_idx)) if return_last_state else y
