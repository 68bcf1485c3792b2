"""Selective scan (Mamba-1): signature, checks, dispatch.

Every backend is one function, `run(ScanInputs) -> (y, last_state)`, `last_state` in the dtype of the sums.
"""

from __future__ import annotations

import functools
from typing import Literal, overload

from torch import Tensor

from wavemamba.checks import expect_shape
from wavemamba.dtypes import widest_dtype
from wavemamba.errors import ShapeError
from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Backend, Case, resolve, runs_everything
from wavemamba.ops.dispatch.operands import expect_beside, expect_operands
from wavemamba.ops.packed import expect_seq_idx
from wavemamba.ops.selective_scan import mamba_ssm, op, reference, torch
from wavemamba.ops.selective_scan.op import ScanInputs
from wavemamba.scans import expect_permutation

__all__ = ["BACKENDS", "selective_scan"]


BACKENDS: tuple[Backend, ...] = (
    Backend("triton", availability.triton, functools.partial(op.run, "triton")),
    Backend("mamba_ssm", mamba_ssm.refuses, mamba_ssm.run),
    Backend("numba", availability.numba, functools.partial(op.run, "numba")),
    Backend("torch", runs_everything, torch.run, slow_on_gpu=True),
    Backend("reference", runs_everything, reference.run, slow_on_gpu=True),
)


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    *,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    return_last_state: Literal[False] = ...,
    order: Tensor | None = ...,
    seq_idx: Tensor | None = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    *,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    return_last_state: Literal[True],
    order: Tensor | None = ...,
    seq_idx: Tensor | None = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    order: Tensor | None = None,
    seq_idx: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space recurrence of Mamba-1.

    With `d_l = delta_l + delta_bias`, through softplus where asked, for every channel `e` and state `n`:

        h_l = exp(d_l * A) * h_{l-1} + d_l * u_l * B_l
        y_l = sum_n C_l * h_l + D * u_l,   then y_l * SiLU(z_l) where there is a gate

    States, exponentials and sums are float32 whatever the inputs (float64 for float64 inputs).

    Args:
        u: (B, L, E), the input.
        delta: (B, L, E), the step size (after softplus: >= 0).
        A: (E, N), the continuous state matrix's diagonal; negative for a decaying state.
        B: (B, L, N) or (B, L, G, N), input projection, one for each of G groups of E / G neighbouring channels.
        C: (B, L, N) or (B, L, G, N), output projection.
        D: (E,), the skip connection.
        z: (B, L, E), the gate.
        delta_bias: (E,), added to `delta` before the softplus.
        delta_softplus: apply `log(1 + exp(.))` to the step size.
        initial_state: (B, E, N), the state before the first step; zero where absent.
        return_last_state: also return the state after the last step.
        order: (L,) int64 or int32, a permutation: step `l` reads and writes row `order[l]` of `u, delta, B, C, z, y`.
            The result equals gathering all of them by `order`, scanning, and scattering back, without those copies.
        seq_idx: (B, L) int64 or int32, the number of the sequence that each row belongs to: the state before step `l`
            is zero where row `order[l]` has another number than row `order[l - 1]`. The initial state enters the first
            sequence; None: all rows are one.
        backend: "auto", "reference", "torch", "numba", "triton" or "mamba_ssm".

    Returns:
        `y` (B, L, E) in the dtype of `u`; with `return_last_state` the pair `(y, last_state)`, `last_state` (B, E, N)
        in float32, the state after the last step, so that of the last sequence.

    Raises:
        ShapeError: a size or dtype does not fit.
        BackendUnavailable: the named backend cannot run this case.

    Source: Gu and Dao, "Mamba", 2023, equations 2 and 3 and algorithm 2.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    B, C = _grouped(B, C, width=u.shape[2])
    if order is not None:
        order = expect_permutation(order, u.shape[1])
        expect_beside("order", order, u)
    if seq_idx is not None:
        expect_seq_idx(seq_idx, u)
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, order, seq_idx)
    case = Case(
        op="selective_scan",
        device=u.device.type,
        dtype=widest_dtype(*inputs.differentiable),
        features=tuple(name for name in ("initial_state", "order", "seq_idx") if getattr(inputs, name) is not None),
        sizes={"states": A.shape[1]},
    )
    y, last_state = resolve(BACKENDS, case, backend)(inputs)
    return (y, last_state) if return_last_state else y


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    expect_operands(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state)
    expect_shape("u", u, (None, None, None), "(B, L, E)", "channels come last")
    batch, length, width = u.shape
    if length < 1 or width < 1:
        raise ShapeError(f"u: expected (B, L, E) with L and E at least 1, got {tuple(u.shape)}; drop empty sequences")
    expect_shape("delta", delta, (batch, length, width), "(B, L, E)")
    expect_shape("A", A, (width, None), "(E, N)")
    state = A.shape[1]
    if state < 1:
        raise ShapeError(f"A: expected (E, N) with N at least 1, got {tuple(A.shape)}; give each channel a state")
    for name, tensor in (("B", B), ("C", C)):
        if tensor.dim() == 4:
            expect_shape(name, tensor, (batch, length, None, state), "(B, L, G, N)")
        else:
            expect_shape(name, tensor, (batch, length, state), "(B, L, N) or (B, L, G, N)")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            expect_shape(name, vector, (width,), "(E,)")
    if z is not None:
        expect_shape("z", z, (batch, length, width), "(B, L, E)")
    if initial_state is not None:
        expect_shape("initial_state", initial_state, (batch, width, state), "(B, E, N)")


def _grouped(B: Tensor, C: Tensor, width: int) -> tuple[Tensor, Tensor]:
    B = B.unsqueeze(2) if B.dim() == 3 else B
    C = C.unsqueeze(2) if C.dim() == 3 else C
    if B.shape[2] != C.shape[2] or B.shape[2] < 1 or width % B.shape[2]:
        raise ShapeError(
            f"B, C: expected the same number of groups, a divisor of E = {width}, got {B.shape[2]}, {C.shape[2]}"
        )
    return B, C
