"""Who can run what, and why not: the dispatch that every op shares.

An op owns a table of `Backend` entries, fastest first. Its public function describes the call as a `Case` and asks
`resolve` for the function to run. Three things choose a backend, strongest first: the op's own `backend=` argument,
`use_backend(...)`, and the environment variable `WAVEMAMBA_BACKEND`.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wavemamba.errors import BackendUnavailable
from wavemamba.names import nearest

NAMES = ("reference", "torch", "numba", "triton", "mamba_ssm", "fla")
ENVIRONMENT_VARIABLE = "WAVEMAMBA_BACKEND"


class SlowBackendWarning(UserWarning):
    """An automatic choice fell back to a backend without a kernel, on a GPU or because numba is switched off."""


NUMBA_SWITCHED_OFF = "NUMBA_DISABLE_JIT keeps numba from compiling; unset it"
"""A refusal that says so aloud: nobody who sets that variable for another package expects these ops to be slow."""


@dataclass(frozen=True)
class Case:
    """What a backend must know of a call to say whether it can run it."""

    op: str
    device: str
    """Device type: "cpu", "cuda", ..."""
    dtype: torch.dtype
    """The widest floating dtype among the arguments."""
    features: tuple[str, ...] = ()
    """Optional parts in use that not every backend has, for example "initial_state" or "order"."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes that not every backend takes, for example "states"."""

    def __str__(self) -> str:
        uses = f" with {', '.join(self.features)}" if self.features else ""
        sizes = "".join(f", {name} {size}" for name, size in self.sizes.items())
        return f"{self.op} on {self.device} in {self.dtype}{sizes}{uses}"


@dataclass(frozen=True)
class Backend:
    """One implementation of an op."""

    name: str
    refuses: Callable[[Case], str | None]
    """Returns why this backend cannot run the case, or None where it can."""
    run: Callable[..., Any]
    """Takes what every backend of the op takes; what is heavy to import, it imports when called."""
    slow_on_gpu: bool = False


def runs_everything(case: Case) -> None:
    """The `refuses` of a backend that can run every case."""


def any_requires_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a gradient of this call; of a call traced by `torch.jit` it is not known."""
    if not torch.is_grad_enabled() or torch._C._get_tracing_state() is not None:
        return False
    return any(t is not None and t.requires_grad for t in tensors)


_requested: ContextVar[str | None] = ContextVar("wavemamba_backend", default=None)


class _Traced(threading.local):
    """What `_requested` holds, where `torch.compile` can read it: not every release traces a context variable.

    A compiled graph guards on it, and so follows `use_backend`, by threads though: not by the tasks of one thread.
    """

    def __init__(self) -> None:
        # Of the instance, in every thread: a guard on an attribute of the class would not see the one that hides it.
        self.name: str | None = None


_traced = _Traced()
_traced_inside: list[str] = []
"""The blocks that a trace is inside of: it sees what happens to a list, but not what it writes to a context."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the `with` block on one backend; other threads and tasks are not touched, inner blocks win.

    Args:
        name: "auto", "reference", "torch", "numba", "triton", "mamba_ssm" or "fla".

    Raises:
        BackendUnavailable: there is no backend of that name.
    """
    _check_name(name, "use_backend")
    if torch.compiler.is_compiling():
        _traced_inside.append(name)
        try:
            yield
        finally:
            _traced_inside.pop()
        return
    token = _requested.set(name)
    _traced.name = name
    try:
        yield
    finally:
        _requested.reset(token)
        _traced.name = _requested.get()


def requested_backend(argument: str) -> str:
    """The name in force: the call's own argument, then `use_backend`, then the environment variable."""
    if argument != "auto":
        _check_name(argument, "backend")
        return argument
    if not torch.compiler.is_compiling():
        requested = _requested.get()
    else:
        requested = _traced_inside[-1] if _traced_inside else _traced.name
    if requested is not None:
        return requested
    name = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if name != "auto":
        _check_name(name, ENVIRONMENT_VARIABLE)
    return name


def _check_name(name: str, source: str) -> None:
    if name != "auto" and name not in NAMES:
        near = nearest(name, ("auto", *NAMES))
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BackendUnavailable(f"{source}: expected 'auto' or one of {', '.join(NAMES)}, got {name!r}{hint}")


def resolve(backends: Sequence[Backend], case: Case, argument: str = "auto") -> Callable[..., Any]:
    """Find the function that runs `case`.

    Args:
        backends: the op's table, fastest first.
        case: the call.
        argument: the op's own `backend=` argument.

    Raises:
        BackendUnavailable: the named backend refuses the case, or every one does.
    """
    wanted = requested_backend(argument)
    refusals: dict[str, str] = {}
    for backend in backends:
        if wanted in ("auto", backend.name):
            reason = backend.refuses(case)
            if reason is None:
                unexpected = case.device != "cpu" or refusals.get("numba") == NUMBA_SWITCHED_OFF
                if wanted == "auto" and backend.slow_on_gpu and unexpected:
                    _warn_slow(case, backend.name, refusals)
                return backend.run
            refusals[backend.name] = reason
    raise BackendUnavailable(f"{wanted!r} cannot run {case}: {refusals or 'this op has no such backend'}")


_warned: set[tuple[str, str]] = set()


def _warn_slow(case: Case, name: str, refusals: dict[str, str]) -> None:
    shapes_only = case.device == "meta"
    if shapes_only or torch.compiler.is_compiling() or (case.op, case.device) in _warned:
        return
    _warned.add((case.op, case.device))
    warnings.warn(
        f"{case.op} on {case.device} falls back to the slow backend {name!r}: {refusals}; "
        f"name a backend to choose it without this warning",
        SlowBackendWarning,
        stacklevel=5,
    )
