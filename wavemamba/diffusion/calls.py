"""How a network is called: explicit conditions, an input of its own, and an output that is checked."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from wavemamba.errors import ConfigError, ShapeError
from wavemamba.names import check_names, nearest

Model = Callable[..., Tensor]
"""`model(x: (B, C, ...), t: (B,)) -> (B, C, ...)`, or `(B, 2C, ...)` where it also learns a variance. Labels are passed
as `y=`, and further conditions by their names, where there are any."""

Conditions = Mapping[str, Any]
"""What a model takes beside `x`, `t` and `y`, by name."""

_DEEPEST = 64  # layers around a model; an object may say that it holds itself

P = ParamSpec("P")
R = TypeVar("R")


def explicit_options(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse a keyword that `function` does not know with a `ConfigError` that names the nearest one."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                near = nearest(name, known)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ConfigError(
                    f"{function.__name__}: expected options among {', '.join(known)}, got {name!r}; {hint}"
                    f"What the model takes beside x, t and y goes into conditions={{{name!r}: ...}}"
                )
        return function(*args, **kwargs)

    return checked


def in_evaluation_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Call `function` with its model, the first argument, in evaluation mode; see `evaluating`."""

    @functools.wraps(function)
    def quietly(*args: P.args, **kwargs: P.kwargs) -> R:
        with evaluating(args[0] if args else kwargs.get("model")):
            return function(*args, **kwargs)

    return quietly


@contextlib.contextmanager
def evaluating(model: object) -> Iterator[None]:
    """The modules of a model in evaluation mode, and every one as it was afterwards.

    Sampling in training mode would drop labels and paths. A module is found as in `find_attribute`.
    """
    outermost = next((layer for layer in _layers(model) if isinstance(layer, nn.Module)), None)
    training = [] if outermost is None else [module for module in outermost.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def expect_conditions(model: Model, y: Tensor | None, conditions: Conditions | None) -> None:
    """Refuse conditions that the model's signature does not have, where it can be read.

    Raises:
        ConfigError: the model cannot be called; a condition of an unknown name, or one with an argument of its own.
        ShapeError: `y` is not a tensor.
    """
    if not callable(model):
        raise ConfigError(f"model: expected a function or module of (x, t), got {model!r}")
    if y is not None and not isinstance(y, Tensor):
        raise ShapeError(f"y: expected a tensor of labels, got {type(y).__name__}; make one with torch.as_tensor")
    if conditions is None:
        return
    if not isinstance(conditions, Mapping) or not all(isinstance(name, str) for name in conditions):
        raise ConfigError(f"conditions: expected a mapping of names to values, got {conditions!r}")
    if taken := sorted({"x", "t", "y"} & set(conditions)):
        raise ConfigError(f"conditions: expected names other than x, t and y, got {taken}; labels go into y=")
    try:
        signature = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    except (TypeError, ValueError):
        return  # a callable that does not tell its arguments
    parameters = signature.parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        check_names(conditions, [p.name for p in parameters if p.name not in ("x", "t", "y")], "condition of the model")


def call_model(
    model: Model, x: Tensor, t: Tensor, y: Tensor | None = None, conditions: Conditions | None = None
) -> Tensor:
    """Call the network and keep the half of its output that predicts.

    The network gets copies: one that works in place changes nothing of the caller's. A network that also learns a
    variance returns twice the channels; the first half is the prediction, as in the released code.

    Raises:
        ShapeError: the output is no dense floating tensor beside `x` with its channels, or twice as many.
    """
    named = dict(conditions or {})
    if y is not None:
        named["y"] = y
    own = {name: value.clone() if isinstance(value, Tensor) else value for name, value in named.items()}
    output = model(x.clone(), t.clone(), **own)
    if not isinstance(output, Tensor):
        raise ShapeError(
            f"model output: expected a tensor, got {type(output).__name__}; wrap the model in a function that returns "
            "its prediction alone"
        )
    if not output.is_floating_point():
        raise ShapeError(f"model output: expected a floating dtype, got {output.dtype}; convert it in the model")
    if output.layout != torch.strided or output.device != x.device:
        raise ShapeError(
            f"model output: expected a dense tensor on {x.device}, got {output.layout} on {output.device}; convert it "
            "in the model, or move the model"
        )
    if output.shape == x.shape:
        return output
    if x.ndim > 1 and output.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
        return output[:, : x.shape[1]]
    raise ShapeError(
        f"model output: expected {tuple(x.shape)}, or twice the channels where a variance is learnt, "
        f"got {tuple(output.shape)}; check the model's in and out channels"
    )


def find_attribute(model: object, name: str) -> Any:
    """An attribute of a model, also of one inside `functools.partial`, a bound method, a decorated function, an object
    that keeps it as `model`, or wrapping modules; else None.

    Of wrapping modules (DDP, compiled ones, a user's own) the outermost that has the attribute decides.
    """
    for layer in _layers(model):
        if hasattr(layer, name):
            return getattr(layer, name)
        if isinstance(layer, nn.Module):
            return next((getattr(module, name) for module in layer.modules() if hasattr(module, name)), None)
    return None


def _layers(model: object) -> Iterator[object]:
    """A model and what it calls, from the outside in, down to the first module."""
    for _ in range(_DEEPEST):
        if model is None:
            return
        yield model
        if isinstance(model, nn.Module):
            return
        if isinstance(model, functools.partial):
            model = model.func
        elif inspect.ismethod(model):
            model = model.__self__
        else:
            model = getattr(model, "__wrapped__", None) or getattr(model, "model", None)
