"""An op with kernels of its own: what PyTorch must be told of it, and how its kernels are found."""

from __future__ import annotations

import builtins
import functools
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from wavemamba.errors import WavemambaError
from wavemamba.ops.dispatch.flops import announce_flops, declare_flops
from wavemamba.ops.dispatch.watching import is_watched

_SCHEMA_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool", int: "int", float: "float", str: "str"}


def schema_of(inputs: type[tuple[Any, ...]], *more: str, returns: int = 1) -> str:
    """The schema of an op that takes the fields of a named tuple.

    Args:
        inputs: a `typing.NamedTuple` class; its fields are tensors, optional tensors or plain values.
        more: further arguments, for example "bool keep".
        returns: how many tensors the op returns.
    """
    fields = [f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in typing.get_type_hints(inputs).items()]
    outputs = "Tensor" if returns == 1 else f"({', '.join(['Tensor'] * returns)})"
    return f"({', '.join([*fields, *more])}) -> {outputs}"


class KernelOp:
    """A `torch.library` op with a formula for its gradient.

    `torch.library` gives such an op to autograd, to `torch.compile` and to `torch.export`, but neither to the
    transforms of `torch.func` nor to forward-mode differentiation, which takes its derivative to be zero. So under a
    transform the same formula is run through an `autograd.Function`, and forward mode is refused. Outside of graphs an
    `autograd.Function` records the formula as well, and where nobody watches single operations the kernel is called
    directly: the way through `torch.library` takes 80 to 140 µs a call, most of a call on tiny tensors.

    It is opaque to the compiler (`custom_op`, not `triton_op`): what the kernels do depends on the machine, some
    launches depend on others, and Triton's interpreter, which has no kernel that the compiler could take over, must run
    the same code for the tests. What the compiler loses is nothing: the kernels have no neighbours to fuse.

    Args:
        name: of the op, in the namespace `wavemamba`.
        schema: made by `schema_of`.
        compute: what the op does, its outputs new tensors.
        fake: the outputs' shapes, dtypes and strides, from tensors without data.
        flops: how many floating-point operations, see `declare_flops`.
        setup_context: `(ctx, inputs, output)`, saves what the formula needs; None for an op that has no gradient.
        backward: `(ctx, *gradients)`, the formula; one value an input.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        compute: Callable[..., Any],
        fake: Callable[..., Any],
        flops: Callable[..., int],
        setup_context: Callable[..., None] | None = None,
        backward: Callable[..., tuple[Any, ...]] | None = None,
    ) -> None:
        self.name, self._compute = name, compute
        self.op = torch.library.custom_op(f"wavemamba::{name}", compute, mutates_args=(), schema=schema)
        self.op.register_fake(fake)
        declare_flops(name, flops)
        setup_context = setup_context or _save_nothing
        backward = backward or self._refuse_derivative
        self.op.register_autograd(backward, setup_context=setup_context)
        self.op.register_vmap(self._one_by_one)
        members = {
            "generate_vmap_rule": True,
            "forward": staticmethod(self.op.__call__),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
            "jvp": staticmethod(self._refuse_forward_mode),
        }
        self._transformed: Any = type(name, (torch.autograd.Function,), members)

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = self._run(*inputs)
            setup_context(ctx, inputs, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._recorded: Any = type(name, (torch.autograd.Function,), members)

    def __call__(self, *inputs: Any) -> Any:
        """Run the op."""
        if torch.compiler.is_compiling():
            return self.op(*inputs)
        if torch._C._len_torch_dispatch_stack() > 0:
            announce_flops()
        if forward_ad._current_level >= 0 and any(map(_has_tangent, inputs)):
            self._refuse_forward_mode()
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return self._transformed.apply(*inputs)
        traced = torch._C._get_tracing_state() is not None  # would keep a call of Python, not the op
        if torch.is_grad_enabled() and not traced and any(map(_requires_grad, inputs)):
            return self._recorded.apply(*inputs)
        return self._run(*inputs)

    def _run(self, *inputs: Any) -> Any:
        """The op, or the kernel itself; a profile has the op's name."""
        named = torch._C._autograd._profiler_enabled() or is_watched(inputs)
        return self.op(*inputs) if named else self._compute(*inputs)

    def _one_by_one(self, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        """Map the op over a dimension of some inputs, which a kernel knows nothing of: one call an entry."""
        results = [
            self.op(*(value if at is None else value.select(at, i) for value, at in zip(inputs, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])

    def _refuse_forward_mode(self, *_: Any) -> Any:
        raise WavemambaError(f"{self.name}: its kernel has no forward-mode derivative; compute it with backend='torch'")

    def _refuse_derivative(self, ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        name = self.name.removesuffix("_backward")
        raise WavemambaError(f"{name}: its kernel has no second derivative; compute it with backend='torch', which has")


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None: ...


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


def gradients_like(inputs: Sequence[Tensor | None], gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """What an op for gradients returns: each in its input's dtype, an empty tensor where there is no such input."""
    return tuple(
        empty_gradient(inputs) if given is None or gradient is None else gradient.to(given.dtype).contiguous()
        for given, gradient in zip(inputs, gradients, strict=True)
    )


def fake_gradients_like(inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The same without data."""
    return tuple(empty_gradient(inputs) if given is None else given.new_empty(given.shape) for given in inputs)


def empty_gradient(inputs: Sequence[Tensor | None]) -> Tensor:
    """Stands for no gradient, beside the first input."""
    first = inputs[0]
    assert first is not None
    return first.new_empty(0, dtype=torch.float32)


_MAX, _MIN, _POW = builtins.max, builtins.min, math.pow


@functools.cache
def kernels(op: str, backend: str) -> Any:
    """The module that calls the kernels of an op, imported at its first use.

    Args:
        op: the name of its package, for example "selective_scan".
        backend: "numba" or "triton".
    """
    name = f"wavemamba.ops.{op}.{backend}"
    with _python_as_it_is():
        return import_module(name)


@contextmanager
def _python_as_it_is() -> Iterator[None]:
    # torch.export puts its own functions in place of these while it traces; numba cannot even be imported then.
    replaced = builtins.max, builtins.min, math.pow
    builtins.max, builtins.min, math.pow = _MAX, _MIN, _POW
    try:
        yield
    finally:
        builtins.max, builtins.min, math.pow = replaced
