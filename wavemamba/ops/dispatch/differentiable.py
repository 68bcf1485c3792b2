"""Gradients of custom ops, in every way that PyTorch can ask for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from wavemamba.errors import WavemambaError


class Differentiable:
    """A custom op with a formula for its gradient, to be called in its place.

    `torch.library` gives such an op to autograd, to `torch.compile` and to `torch.export`, but neither to the
    transforms of `torch.func` nor to forward-mode differentiation, which takes its derivative to be zero. So under a
    transform the same formula is run through an `autograd.Function`, and forward mode is refused.

    Plain tensors in eager mode do not take the way through PyTorch's dispatcher, which costs a small scan as much as
    its arithmetic: the same `autograd.Function` runs the op's own code.

    Args:
        name: of the op, for messages.
        run: what the op does, its outputs new tensors.
        op: `torch.library.custom_op` of `run`.
        setup_context: `(ctx, inputs, output)`, saves what the formula needs.
        backward: `(ctx, *gradients)`, the formula; one value an input.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        op: Any,
        setup_context: Callable[..., None],
        backward: Callable[..., tuple[Any, ...]],
    ) -> None:
        self.name, self._run, self._op = name, run, op
        op.register_autograd(backward, setup_context=setup_context)
        self._transformed = _function(f"{name}_transformed", op.__call__, setup_context, backward)
        self._direct = _function(name, run, setup_context, backward)

    def __call__(self, *inputs: Any) -> Any:
        """Run the op."""
        if torch.compiler.is_compiling():
            return self._op(*inputs)
        if forward_ad._current_level >= 0 and any(map(_has_tangent, inputs)):
            raise WavemambaError(
                f"{self.name}: its kernel has no forward-mode derivative; compute it with backend='torch'"
            )
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return self._transformed.apply(*inputs)
        if _is_observed() or any(isinstance(value, Tensor) and type(value) not in _PLAIN for value in inputs):
            return self._op(*inputs)
        return self._direct.apply(*inputs) if torch.is_grad_enabled() else self._run(*inputs)


_PLAIN = (Tensor, nn.Parameter)


def _function(
    name: str, forward: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Any:
    members = {
        "generate_vmap_rule": True,
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
    }
    return type(name, (torch.autograd.Function,), members)


def _is_observed() -> bool:
    """Whether something wants to see the op itself: a dispatch mode (fake tensors, tracing, counters), `jit.trace`."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


def refuse_second_derivative(name: str, run: Callable[..., Any], op: Any) -> Differentiable:
    """An op that is itself a gradient, and has none."""

    def refuse(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        raise WavemambaError(f"{name}: its kernel has no second derivative; compute it with backend='torch', which has")

    return Differentiable(name, run, op, lambda ctx, inputs, output: None, refuse)
