"""Building models so that nothing is drawn, and nothing large is allocated, before it is known to be wanted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from wavemamba.errors import CheckpointError, WavemambaError
from wavemamba.models.weights import expect_fit

if TYPE_CHECKING:
    from wavemamba.models.base import Model

_INITIALISERS = {
    "normal_", "uniform_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_",
    "zeros_", "ones_", "constant_", "zero_", "fill_", "copy_",
}  # fmt: skip
_SPARE_NUMBERS, _SPARE_TENSORS = 2**20, 1000


@contextmanager
def drawing_nothing() -> Iterator[None]:
    """Put the random state of the CPU and of the default device back at the end.

    A model that is built inside and initialised outside has the values that `reset_parameters` alone would give it.
    """
    device = torch.get_default_device()
    if device.type in ("cpu", "meta"):
        with torch.random.fork_rng(devices=[]):
            yield
        return
    index = device.index
    if index is None:
        index = torch.get_device_module(device).current_device()
    with torch.random.fork_rng(devices=[index], device_type=device.type):
        yield


@contextmanager
def without_values() -> Iterator[None]:
    """Build on the meta device, where nothing is allocated, and nothing drawn."""
    with torch.device("meta"), _WithoutDraws():
        yield


def build_to_load(build: Callable[[], Model], shapes: Mapping[str, Tensor], *, on_meta: bool) -> Model:
    """Build a model for a file of weights, and compare the two before anything is allocated.

    Args:
        build: makes the model.
        shapes: what the file holds, on the meta device.
        on_meta: leave the model on the meta device; its tensors are then to be assigned.

    Raises:
        CheckpointError: the model and the file do not fit.
    """
    with drawing_nothing(), bounded_by(shapes):
        trial: Model | None = None
        # A part of a user's own may be one that cannot be built without values.
        with contextlib.ExitStack() as tolerant, without_values():
            if not on_meta:
                tolerant.enter_context(contextlib.suppress(_Unbuildable))
            trial = _named(build)
        if trial is not None:
            expect_fit(trial, shapes)
        return trial if trial is not None and on_meta else _named(build)


def has_meta(model: nn.Module) -> bool:
    """Whether a parameter or buffer has no values yet."""
    return any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


class _WithoutDraws(TorchFunctionMode):
    """Leaves out what gives values to tensors that hold none; PyTorch would import its compiler for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        given = args[0] if args else kwargs.get("tensor")  # which is how torch.nn.init passes it on
        if name in _INITIALISERS and isinstance(given, Tensor) and given.is_meta:
            return given
        return func(*args, **kwargs)


class _Unbuildable(CheckpointError):
    """The configuration asks for what cannot be made."""


def _named(build: Callable[[], Model]) -> Model:
    try:
        return build()
    except WavemambaError:
        raise
    except (RuntimeError, MemoryError, OverflowError, NotImplementedError) as error:
        raise _Unbuildable(f"expected a configuration that can be built, got: {error}") from error


@contextmanager
def bounded_by(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Stop what builds a model of many more parameters than there are weights, with a `CheckpointError`."""
    most_numbers = 2 * sum(tensor.numel() for tensor in state.values()) + _SPARE_NUMBERS
    most_tensors = 2 * len(state) + _SPARE_TENSORS
    thread, numbers, tensors = threading.get_ident(), 0, 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal numbers, tensors
        if parameter is None or threading.get_ident() != thread:
            return
        numbers, tensors = numbers + parameter.numel(), tensors + 1
        if numbers > most_numbers or tensors > most_tensors:
            raise CheckpointError(
                "expected a configuration that fits the weights, got one of many more parameters; fetch both files "
                "again"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
