"""Formulas for PyTorch's counter of floating-point operations, `torch.utils.flop_counter.FlopCounterMode`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_formulas: dict[str, Callable[..., int]] = {}


def declare_flops(op: str, formula: Callable[..., int]) -> None:
    """Keep a formula for an op of the namespace `wavemamba`.

    Args:
        op: its name.
        formula: takes the op's arguments, every tensor replaced by its shape, and returns the number of operations.
    """
    _formulas[op] = formula


def announce_flops() -> None:
    """Tell the counter of the formulas, also one that is counting already.

    Importing the counter imports Triton, so it is told only where it is in use. Each counter copies the formulas when
    it is made.
    """
    if "torch.utils.flop_counter" not in sys.modules:
        return
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    for name, formula in _formulas.items():
        op = getattr(torch.ops.wavemamba, name)
        if op not in flop_registry:
            register_flop_formula(op)(formula)
        for mode in _get_current_dispatch_mode_stack():
            counted = getattr(getattr(mode, "counter", None), "flop_registry", {})
            counted.setdefault(op, flop_registry[op])
