"""Causal depthwise convolution: signature, checks, dispatch.

Every backend implements one function:

    run(x, weight, bias, silu, initial_state, order) -> y
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from wavemamba.checks import expect_floating, expect_shape
from wavemamba.dtypes import widest_dtype
from wavemamba.errors import ShapeError
from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Backend, Case, any_requires_grad, resolve
from wavemamba.ops.dispatch.loading import import_numba

__all__ = ["BACKENDS", "causal_conv1d"]


def _load_reference() -> Callable[..., Any]:
    from wavemamba.ops.causal_conv1d.reference import run

    return run


def _load_torch() -> Callable[..., Any]:
    from wavemamba.ops.causal_conv1d.torch import run

    return run


def _load_numba() -> Callable[..., Any]:
    import_numba("causal_conv1d")
    from wavemamba.ops.causal_conv1d.numba import run

    return run


def _load_triton() -> Callable[..., Any]:
    from wavemamba.ops.causal_conv1d.triton import run

    return run


def _load_mamba_ssm() -> Callable[..., Any]:
    from wavemamba.ops.causal_conv1d.mamba_ssm import run

    return run


BACKENDS: tuple[Backend, ...] = (
    Backend("triton", availability.triton, _load_triton),
    Backend("mamba_ssm", lambda case: availability.cuda_package(case, "causal_conv1d"), _load_mamba_ssm),
    Backend("numba", availability.numba, _load_numba),
    Backend("torch", lambda case: None, _load_torch, slow_on_gpu=True),
    Backend("reference", lambda case: None, _load_reference, slow_on_gpu=True),
)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu", "swish"] | None = None,
    initial_state: Tensor | None = None,
    order: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution in which step `l` sees the steps `l - width + 1 .. l` only.

        y_l = act(bias + sum_k weight[:, k] * x_{l - width + 1 + k})

    Sums are float32 whatever the inputs (float64 for float64 inputs).

    Args:
        x: (B, L, E).
        weight: (E, width).
        bias: (E,).
        activation: None, or "silu" (also called "swish").
        initial_state: (B, width - 1, E), the inputs before the first step, oldest first; zero where absent.
        order: (L,) int64, a permutation: step `l` reads and writes row `order[l]`.
        backend: "auto", "reference", "torch", "numba", "triton" or "mamba_ssm".

    Returns:
        (B, L, E) in the dtype of `x`.

    Raises:
        ShapeError: a size or dtype does not fit, or the activation is unknown.
        BackendUnavailable: the named backend cannot run this case.

    Source: the convolution of Mamba's block, Gu and Dao, "Mamba", 2023, figure 3.
    """
    expect_shape("x", x, (None, None, None), "(B, L, E)", "channels come last")
    batch, length, channels = x.shape
    if x.numel() == 0:
        raise ShapeError(f"x: expected (B, L, E) with no empty side, got {tuple(x.shape)}")
    expect_shape("weight", weight, (channels, None), "(E, width)")
    width = weight.shape[1]
    if bias is not None:
        expect_shape("bias", bias, (channels,), "(E,)")
    if initial_state is not None:
        expect_shape("initial_state", initial_state, (batch, width - 1, channels), "(B, width - 1, E)")
    if order is not None:
        expect_shape("order", order, (length,), "(L,)")
    if activation not in (None, "silu", "swish"):
        raise ShapeError(f"activation: expected None, 'silu' or 'swish', got {activation!r}")
    expect_floating("x", x)
    expect_floating("weight", weight)

    parts = {"initial_state": initial_state, "order": order}
    case = Case(
        op="causal_conv1d",
        device=x.device.type,
        dtype=widest_dtype(x, weight, bias, initial_state),
        needs_grad=any_requires_grad(x, weight, bias, initial_state),
        elements=x.numel(),
        features=tuple(name for name, part in parts.items() if part is not None),
    )
    run = resolve(BACKENDS, case, backend)
    y: Tensor = run(x, weight, bias, activation is not None, initial_state, order)
    return y
