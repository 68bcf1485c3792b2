"""Selective scan by the CUDA kernel of the mamba-ssm package: its layouts, its dtypes, its limits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wavemamba.errors import BackendUnavailable
from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Case
from wavemamba.ops.selective_scan.op import ScanInputs
from wavemamba.scans.permutation import invert_permutation

_MOST_STATES = 256


def refuses(case: Case) -> str | None:
    """What the package lacks or cannot do."""
    if "initial_state" in case.features:
        return "mamba-ssm's kernel takes no initial state"
    if "seq_idx" in case.features:
        return "mamba-ssm's kernel takes one sequence a row"
    if case.sizes.get("states", 0) > _MOST_STATES:
        return f"mamba-ssm's kernel takes at most {_MOST_STATES} states"
    return availability.cuda_package(case, "mamba_ssm")


class _NoGradient(torch.autograd.Function):
    """The last state, which the package returns without its gradient: refused instead of silently zero."""

    @staticmethod
    def forward(ctx: Any, state: Tensor) -> Tensor:
        return state.view_as(state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise BackendUnavailable(
            "selective_scan: mamba-ssm's kernel has no gradient through the last state; name another backend"
        )


def run(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Channels first: (B, E, L) and (B, G, N, L); see `wavemamba.ops.selective_scan` for the equation and shapes.

    The package wants one dtype for everything that runs along the sequence, that of `u`, and float32 for the rest.

    Raises:
        BackendUnavailable: a gradient flows through the last state.

    Source: the interface of mamba-ssm 2.2, `mamba_ssm/ops/selective_scan_interface.py`.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, delta, A, B, C, D, z, delta_bias, delta_softplus, _, order, _ = inputs

    def along(tensor: Tensor) -> Tensor:
        tensor = tensor.to(u.dtype) if order is None else tensor.to(u.dtype).index_select(1, order)
        return tensor.movedim(1, -1).contiguous()

    y, last_state = selective_scan_fn(
        along(u),
        along(delta),
        A.float(),
        along(B),
        along(C),
        None if D is None else D.float(),
        None if z is None else along(z),
        None if delta_bias is None else delta_bias.float(),
        delta_softplus,
        return_last_state=True,
    )
    y = y.transpose(1, 2)
    if order is not None:
        y = y.index_select(1, invert_permutation(order))
    return y, _NoGradient.apply(last_state)
