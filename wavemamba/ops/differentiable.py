"""Gradients of custom ops, in every way that PyTorch can ask for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from wavemamba.errors import WavemambaError


class Differentiable:
    """A custom op with a formula for its gradient, to be called in its place.

    `torch.library` gives such an op to autograd, to `torch.compile` and to `torch.export`, but neither to the
    transforms of `torch.func` nor to forward-mode differentiation, which takes its derivative to be zero. So under a
    transform the same formula is run through an `autograd.Function`, and forward mode is refused.

    Args:
        name: of the op, for messages.
        op: made by `torch.library.custom_op`.
        setup_context: `(ctx, inputs, output)`, saves what the formula needs.
        backward: `(ctx, *gradients)`, the formula; one value an input.
    """

    def __init__(
        self, name: str, op: Any, setup_context: Callable[..., None], backward: Callable[..., tuple[Any, ...]]
    ) -> None:
        self.name, self.op = name, op
        op.register_autograd(backward, setup_context=setup_context)
        members = {
            "generate_vmap_rule": True,
            "forward": staticmethod(lambda *inputs: op(*inputs)),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
        }
        self._function: Any = type(f"{name}_function", (torch.autograd.Function,), members)

    def __call__(self, *inputs: Any) -> Any:
        """Run the op."""
        if torch.compiler.is_compiling():
            return self.op(*inputs)
        if forward_ad._current_level >= 0 and any(map(_has_tangent, inputs)):
            raise WavemambaError(
                f"{self.name}: its kernel has no forward-mode derivative; compute it with backend='torch'"
            )
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return self._function.apply(*inputs)
        return self.op(*inputs)


def _has_tangent(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None


def refuse_second_derivative(name: str, op: Any) -> Differentiable:
    """An op that is itself a gradient, and has none."""

    def refuse(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        raise WavemambaError(f"{name}: its kernel has no second derivative; compute it with backend='torch', which has")

    return Differentiable(name, op, lambda ctx, inputs, output: None, refuse)
