"""Gated linear attention: signature, checks, dispatch."""

from __future__ import annotations

from typing import Any, Literal, overload

from torch import Tensor, float32

from wavemamba.checks import expect_shape, expect_size
from wavemamba.dtypes import autocast_off, widest_dtype
from wavemamba.errors import ShapeError
from wavemamba.ops.dispatch.backend import Backend, Case, resolve, runs_everything
from wavemamba.ops.dispatch.operands import expect_operands
from wavemamba.ops.gla_scan import fla, reference, torch
from wavemamba.ops.packed import expect_seq_idx

__all__ = ["BACKENDS", "gla_scan"]

BACKENDS: tuple[Backend, ...] = (
    Backend("fla", fla.refuses, fla.run),
    Backend("torch", runs_everything, torch.run),
    Backend("reference", runs_everything, reference.run, slow_on_gpu=True),
)


@overload
def gla_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    initial_state: Tensor | None = ...,
    return_last_state: Literal[False] = ...,
    seq_idx: Tensor | None = ...,
    chunk_size: int = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def gla_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    initial_state: Tensor | None = ...,
    return_last_state: Literal[True],
    seq_idx: Tensor | None = ...,
    chunk_size: int = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def gla_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    initial_state: Tensor | None = ...,
    return_last_state: bool,
    seq_idx: Tensor | None = ...,
    chunk_size: int = ...,
    backend: str = ...,
) -> Any: ...


def gla_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    seq_idx: Tensor | None = None,
    chunk_size: int = 64,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Gated linear attention: a recurrence whose decay is one number a channel of the keys, at every step.

    With `a_l = exp(log_decay_l)`, for every head:

        S_l = diag(a_l) S_{l-1} + k_l v_l^T
        y_l = S_l^T q_l

    Nothing scales the queries; the paper divides them by the root of K. States, decays and sums are float32 whatever
    the inputs (float64 for float64 inputs); fla's kernels round states of 16-bit inputs to 16 bits, and take no decay
    of exactly 0. Where "reference" is finite, "torch" is, and they agree: an infinite value or a NaN reaches neither
    earlier steps nor another sequence.

    Args:
        q: (B, L, H, K), the queries.
        k: (B, L, H, K), the keys.
        v: (B, L, H, V), the values.
        log_decay: (B, L, H, K), <= 0 for a decaying state; -inf forgets everything.
        initial_state: (B, H, K, V), the state before the first step; zero where absent.
        return_last_state: also return the state after the last step.
        seq_idx: (B, L) int64 or int32, the sequence of each step: the state begins at zero where it changes, and the
            initial state enters the first sequence.
        chunk_size: steps that one matrix product takes, >= 1, rounded up to a power of two; the result does not depend
            on it.
        backend: "auto", "reference", "torch" or "fla".

    Returns:
        `y` (B, L, H, V) in the dtype of `v`; with `return_last_state` the pair `(y, last_state)`, `last_state`
        (B, H, K, V) in the dtype of the sums.

    Raises:
        ShapeError: a size or dtype does not fit.
        ConfigError: `chunk_size` is no int >= 1.
        BackendUnavailable: the named backend cannot run this case.

    Source: Yang et al., "Gated linear attention transformers with hardware-efficient training", 2023, equation 3.
    """
    _check(q, k, v, log_decay, initial_state, seq_idx)
    expect_size("chunk_size", chunk_size)
    tensors = (q, k, v, log_decay, initial_state)
    uses = {"seq_idx": seq_idx is not None, "float32 products": v.dtype == float32}
    case = Case(
        op="gla_scan",
        device=v.device.type,
        dtype=widest_dtype(*tensors),
        features=tuple(name for name, used in uses.items() if used),
        sizes={"batch": v.shape[0]},
    )
    run = resolve(BACKENDS, case, backend)
    with autocast_off(q.device):
        y, last = run(q, k, v, log_decay, initial_state, seq_idx, chunk_size, return_last_state)
    return (y, last) if return_last_state else y


def _check(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor | None, seq_idx: Tensor | None
) -> None:
    expect_operands(q=q, k=k, v=v, log_decay=log_decay, initial_state=initial_state)
    expect_shape("q", q, (None, None, None, None), "(B, L, H, K)")
    batch, length, heads, width = q.shape
    expect_shape("k", k, (batch, length, heads, width), "(B, L, H, K)")
    expect_shape("v", v, (batch, length, heads, None), "(B, L, H, V)")
    expect_shape("log_decay", log_decay, (batch, length, heads, width), "(B, L, H, K)")
    if length < 1 or heads < 1 or width < 1 or v.shape[3] < 1:
        raise ShapeError(
            f"q, v: expected L, H, K and V at least 1, got {tuple(q.shape)} and {tuple(v.shape)}; drop empty sequences"
        )
    if initial_state is not None:
        expect_shape("initial_state", initial_state, (batch, heads, width, v.shape[3]), "(B, H, K, V)")
    if seq_idx is not None:
        expect_seq_idx(seq_idx, q)
