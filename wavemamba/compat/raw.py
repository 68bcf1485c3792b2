"""The compiled modules of mamba-ssm and VMamba as functions: forward passes, and gradients computed anew.

Their last states lie in a tensor of scan intermediates, `x[:, :, -1, 1::2]`; here it holds nothing else.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from wavemamba.compat.mamba_ssm.ops.selective_scan_interface import selective_scan_fn

Inputs = tuple[Tensor | None, ...]


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The scan without a graph: y (B, D, L), and the intermediates (B, D, 1, 2 N) that hold the last state."""
    with torch.no_grad():
        y, state = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=True)
        kept = state.new_zeros(*state.shape[:2], 1, 2 * state.shape[2])
        kept[:, :, 0, 1::2] = state
    return y, kept


def gradients(given: Inputs, delta_softplus: bool, dout: Tensor) -> list[Tensor | None]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias; None where there is no such input."""
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in given]
        scan: Any = selective_scan_fn
        y = scan(*leaves, delta_softplus)
        there = [t for t in leaves if t is not None]
        found = iter(torch.autograd.grad(y, there, dout.to(y.dtype)))
    return [None if t is None else next(found) for t in leaves]


def refuse(module: str, name: str) -> NoReturn:
    """Say which function does what a compiled module's function did.

    Raises:
        AttributeError: always.
    """
    function: Any = "wavemamba.ops.causal_conv1d" if "conv" in module else "wavemamba.ops.selective_scan"
    raise AttributeError(f"{module}.{name}: not offered by wavemamba.compat; {function} does it, with its gradients")
