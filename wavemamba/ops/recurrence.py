"""A linear recurrence in vectorised PyTorch, all steps at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wavemamba.ops.dispatch.kernel_op import KernelOp
from wavemamba.sizes import is_open


def linear_recurrence(decay: Tensor, value: Tensor, starts: Tensor | None = None) -> Tensor:
    """Solve `h_l = decay_l * h_{l-1} + value_l`, `h_{-1} = 0`, along dimension 1; where a step starts, `h_l = value_l`.

    Neighbouring steps are merged in pairs, the half-length problem is solved the same way, and the other half follows
    from it: `2 L` multiplications, `log2 L` deep. Only products of decays are formed, never quotients, so that nothing
    overflows where the decays are at most 1. In a graph for any length it is one operator: what is merged with what
    depends on the length.

    Args:
        decay: (B, L, ...); further sides of 1 stand for any.
        value: (B, L, ...).
        starts: bool, (B, L) with as many further sides of 1; None: nowhere.

    Returns:
        h, (B, L, ...).

    Source: Blelloch, "Prefix sums and their applications", 1990, section 1.4.
    """
    if is_open(value.shape[1]):
        return _recurrence(decay, value, starts)
    return _by_pairs(decay, value, starts)


def _by_pairs(decay: Tensor, value: Tensor, starts: Tensor | None) -> Tensor:
    length = value.shape[1]
    if length == 1:
        return value
    even_decay, odd_decay = decay[:, 0::2], decay[:, 1::2]
    even_value, odd_value = value[:, 0::2], value[:, 1::2]
    pairs = odd_decay.shape[1]
    even_starts, odd_starts = (None, None) if starts is None else (starts[:, 0::2], starts[:, 1::2])
    either = None if even_starts is None or odd_starts is None else odd_starts | even_starts[:, :pairs]
    odd = _by_pairs(
        odd_decay * even_decay[:, :pairs], _follow(odd_value, odd_decay, even_value[:, :pairs], odd_starts), either
    )
    before = odd[:, : even_value.shape[1] - 1]
    rest = _follow(even_value[:, 1:], even_decay[:, 1:], before, None if even_starts is None else even_starts[:, 1:])
    even = torch.cat([even_value[:, :1], rest], dim=1)
    merged = torch.stack([even[:, :pairs], odd], dim=2).flatten(1, 2)
    return merged if length == 2 * pairs else torch.cat([merged, even[:, pairs:]], dim=1)


def _follow(value: Tensor, decay: Tensor, before: Tensor, starts: Tensor | None) -> Tensor:
    """`value + decay * before`, and `value` alone where a step starts, whatever stood before."""
    after = torch.addcmul(value, decay, before)
    return after if starts is None else torch.where(starts, value, after)


def _compute(decay: Tensor, value: Tensor, starts: Tensor | None) -> Tensor:
    return _by_pairs(decay, value, starts).clone(memory_format=torch.contiguous_format)


def _fake(decay: Tensor, value: Tensor, starts: Tensor | None) -> Tensor:
    return value.new_empty(value.shape)


def _flops(decay: Any, value: Any, starts: Any, **_: Any) -> int:
    """Two products and two sums a state, and of half as many states the products of their decays."""
    return int(4 * math.prod(value) + math.prod(decay))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    decay, _, starts = inputs
    ctx.save_for_backward(decay, starts, output)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_recurrence_backward(grad, *ctx.saved_tensors), None


def _compute_backward(grad: Tensor, decay: Tensor, starts: Tensor | None, h: Tensor) -> tuple[Tensor, Tensor]:
    """The same recurrence from the last step to the first, each with the decay of the step after it."""
    after = None if starts is None else starts.roll(-1, 1).flip(1)
    dvalue = _by_pairs(decay.roll(-1, 1).flip(1), grad.flip(1), after).flip(1)
    ddecay = dvalue * torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)
    if starts is not None:
        ddecay = torch.where(starts, 0, ddecay)
    return ddecay.sum_to_size(decay.shape), dvalue


def _fake_backward(grad: Tensor, decay: Tensor, starts: Tensor | None, h: Tensor) -> tuple[Tensor, Tensor]:
    return decay.new_empty(decay.shape), h.new_empty(h.shape)


def _flops_backward(grad: Any, decay: Any, starts: Any, h: Any, **_: Any) -> int:
    return int(6 * math.prod(h) + math.prod(decay))


_recurrence = KernelOp(
    "linear_recurrence",
    "(Tensor decay, Tensor value, Tensor? starts) -> Tensor",
    _compute,
    _fake,
    _flops,
    _save,
    _gradients,
)
_recurrence_backward = KernelOp(
    "linear_recurrence_backward",
    "(Tensor grad, Tensor decay, Tensor? starts, Tensor h) -> (Tensor, Tensor)",
    _compute_backward,
    _fake_backward,
    _flops_backward,
)
