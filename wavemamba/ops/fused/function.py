"""A function that PyTorch computes in several passes over memory, and a CPU kernel in one, with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Case
from wavemamba.ops.dispatch.kernel_op import kernels
from wavemamba.ops.dispatch.watching import is_watched

_CASE = Case("fused", "cpu", torch.float32)


class Fused:
    """A function of tensors: its plain text everywhere, a kernel where nobody looks into it.

    The kernel runs eagerly, on float32 tensors on the CPU, or bfloat16 ones where it reads them, and computes in
    float32. It takes some ten microseconds to call, so that few numbers go through the plain text. In graphs and under
    whatever else watches single operations (modes, subclasses, traces), under `torch.func` and in forward mode the
    plain text runs. A second derivative is that of the plain text: the first one is computed by it wherever it is
    differentiated again.

    Args:
        plain: `(*inputs) -> y` in PyTorch's operations; inputs are tensors and numbers.
        kernel: the name of the functions `NAME(*inputs) -> (y, kept)`, with what the gradient needs beside the
            inputs, and `NAME_backward(g, *inputs, *kept) -> gradients`, one an input, in `wavemamba.ops.fused.numba`.
        fits: whether these inputs have the shapes that the kernel knows; PyTorch may broadcast others.
        dtypes: what the kernel reads and writes; all tensors of a call have one.
    """

    least = 2**14
    """Numbers of the first input from which the kernel is faster."""

    def __init__(
        self,
        plain: Callable[..., Tensor],
        kernel: str,
        fits: Callable[..., bool],
        dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    ) -> None:
        self.plain, self.kernel, self.fits, self.dtypes = plain, kernel, fits, dtypes

    def __call__(self, *inputs: Any) -> Tensor:
        """Compute it."""
        # In graphs nobody asks for a size, which would be fixed there.
        if not (_may_run_kernels(inputs, self.dtypes) and inputs[0].numel() >= self.least and self.fits(*inputs)):
            return self.plain(*inputs)
        if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
            y: Tensor = _Recorded.apply(self, *inputs)
            return y
        return self.forward(*inputs)[0]

    def forward(self, *inputs: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The kernel's result, and what it keeps for the gradient."""
        y, kept = getattr(kernels("fused", "numba"), self.kernel)(*inputs)
        return y, kept

    def backward(self, g: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Any:
        """The gradients of the inputs that need one, None for the others."""
        if torch.is_grad_enabled() or not _may_run_kernels((g, *inputs), self.dtypes):
            return self._differentiate(g, inputs, needed)
        found = getattr(kernels("fused", "numba"), f"{self.kernel}_backward")(g, *inputs, *kept)
        return tuple(gradient.to(g.dtype) if need else None for gradient, need in zip(found, needed, strict=True))

    def _differentiate(self, g: Tensor, inputs: Sequence[Any], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views: an input that was computed from another one is not to hand its share on to that one here.
            fresh = [value.view_as(value) if need else value for value, need in zip(inputs, needed, strict=True)]
            wanted = [value for value, need in zip(fresh, needed, strict=True) if need]
            found = iter(torch.autograd.grad(self.plain(*fresh), wanted, g, create_graph=again))
        return tuple(next(found) if need else None for need in needed)


class _Recorded(torch.autograd.Function):
    """One call in autograd's graph."""

    @staticmethod
    def forward(ctx: Any, function: Fused, *inputs: Any) -> Tensor:
        y, kept = function.forward(*inputs)
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.function, ctx.numbers = function, [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*tensors, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if value is None else value for value in ctx.numbers]
        return None, *ctx.function.backward(g, inputs, tuple(saved), ctx.needs_input_grad[1:])


def _may_run_kernels(inputs: Sequence[Any], dtypes: tuple[torch.dtype, ...]) -> bool:
    if is_watched(inputs):
        return False
    differentiates_forward = forward_ad._current_level >= 0
    dtype = next(value.dtype for value in inputs if isinstance(value, Tensor))
    if dtype not in dtypes:
        return False
    for value in inputs:
        if isinstance(value, Tensor):
            if value.dtype is not dtype or not value.is_cpu or value.layout is not torch.strided:
                return False
            if value.numel() == 0:
                return False
            if differentiates_forward and forward_ad.unpack_dual(value).tangent is not None:
                return False
    return availability.numba_takes_part(_CASE)
