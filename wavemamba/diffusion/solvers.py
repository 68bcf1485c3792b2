"""Integrating `dx/dt = field(t, x)` with any solver by name."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wavemamba.diffusion.adaptive import integrate_per_sample, row_rms
from wavemamba.diffusion.report import Callback, Progress, SampleInfo
from wavemamba.diffusion.tableaus import EMBEDDED, EXPLICIT, combine
from wavemamba.errors import ConfigError, WavemambaError
from wavemamba.names import choose

Dynamics = Callable[[Tensor, Tensor], Tensor]
"""`(t: (B,), x: (B, ...)) -> (B, ...)`."""

MULTISTEP = ("explicit_adams", "implicit_adams", "fixed_adams")
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver")
ODE_SOLVERS: tuple[str, ...] = (*EXPLICIT, "heun", *MULTISTEP, *ADAPTIVE)
"""Every solver of torchdiffeq under its own name, and "heun" for "heun2"."""

STEP_CONTROLS = ("batch", "sample")


def integrate(
    field: Dynamics,
    x: Tensor,
    start: float,
    end: float,
    *,
    solver: str = "dopri5",
    steps: int = 50,
    atol: float = 1e-6,
    rtol: float = 1e-3,
    step_control: str = "batch",
    overshoot: bool = False,
    norm: Callable[[Tensor], Tensor] | None = None,
    options: dict[str, Any] | None = None,
    callback: Callback | None = None,
) -> tuple[Tensor, SampleInfo]:
    """Integrate from `start` to `end`.

    The explicit Runge-Kutta methods of fixed step run here, without waiting for the device; the others run in
    torchdiffeq, or here with `step_control="sample"`.

    Args:
        field: the right-hand side, called with one time per sample.
        x: (B, ...), the state at `start`, floating.
        start: first time.
        end: last time; may lie before `start`.
        solver: a name in `ODE_SOLVERS`.
        steps: equal steps of a fixed-step or multistep method, >= 1; adaptive ones choose their own.
        atol: absolute tolerance of adaptive methods, and of the corrector of implicit_adams.
        rtol: relative tolerance.
        step_control: `"batch"`: the samples of a batch share their steps, chosen from the error over all of them (as
            torchdiffeq does). `"sample"`: every sample has its own (dopri5 and bosh3).
        overshoot: let adaptive solvers with shared steps pass `end` and interpolate back, torchdiffeq's own way. The
            field is then evaluated beyond `end`, and the interpolant's error joins the method's: with bosh3 and dopri8
            it is the larger by orders of magnitude. Otherwise the last step ends at `end`.
        norm: (B, ...) to (B,), size of an error in units of the tolerance; None: root mean square.
        options: torchdiffeq's options for solvers that run there.
        callback: called after every step.

    Returns:
        The state at `end`, and what it took.

    Raises:
        ConfigError: an unknown name, fewer than one step, or options for a solver that has none.
        WavemambaError: an adaptive solver cannot go on.
    """
    name = choose("solver", solver, ODE_SOLVERS)
    name = "heun2" if name == "heun" else name
    control = choose("step_control", step_control, STEP_CONTROLS)
    if steps < 1:
        raise ConfigError(f"steps: expected at least 1, got {steps}")
    if name in EXPLICIT:
        _refuse_options(name, options)
        return _fixed(field, x, start, end, name, steps, callback)
    if control == "sample" and name in ADAPTIVE:
        if name not in EMBEDDED:
            raise ConfigError(
                f"step_control='sample': expected one of {', '.join(map(repr, EMBEDDED))}, got solver {name!r}; "
                "or use step_control='batch'"
            )
        _refuse_options(name, options)
        return integrate_per_sample(
            field, x, start, end, solver=name, atol=atol, rtol=rtol, norm=norm or row_rms, callback=callback
        )
    if name == "explicit_adams":
        # torchdiffeq climbs to order 12, whose region of stability is too small for any usual number of steps.
        options = {"max_order": 5, **(options or {})}
    return _torchdiffeq(field, x, start, end, name, steps, atol, rtol, overshoot, norm, options or {}, callback)


def time_grid(start: float, end: float, steps: int) -> list[float]:
    """`steps + 1` equally spaced times, both ends included exactly."""
    return [start + (end - start) * i / steps for i in range(steps)] + [end]


def _refuse_options(name: str, options: dict[str, Any] | None) -> None:
    if options:
        raise ConfigError(f"options: solver {name!r} takes none here, got {sorted(options)}; leave them out")


def _fixed(
    field: Dynamics, x: Tensor, start: float, end: float, name: str, steps: int, callback: Callback | None
) -> tuple[Tensor, SampleInfo]:
    method = EXPLICIT[name]
    times = time_grid(start, end, steps)
    for step, (now, after) in enumerate(itertools.pairwise(times)):
        h = after - now
        # The last node is the end itself, not the rounding of a sum that may pass it.
        nodes = [after if c == 1.0 else now + c * h for c in method.nodes]

        def at_node(i: int, state: Tensor, nodes: list[float] = nodes) -> Tensor:
            return field(torch.full((len(state),), nodes[i], device=state.device, dtype=state.dtype), state)

        x = x + h * combine(method.weights, method.slopes(at_node, x, h))
        if callback is not None:
            callback(Progress(step + 1, steps, after, x))
    return x, SampleInfo(name, steps, steps * len(method.nodes), 0, start, end)


def _within(field: Dynamics, first: float, last: float) -> Dynamics:
    # torchdiffeq's probe for a first step goes as far as the slope is flat, beyond the end where it is nearly zero.
    return lambda t, x: field(t.clamp(first, last), x)


class _Traced:
    """The right-hand side as torchdiffeq wants it: a scalar time, and its hooks as attributes."""

    def __init__(self, field: Dynamics, name: str, total: int | None, callback: Callback | None) -> None:
        self._field, self._total, self._callback = field, total, callback
        self.nfe = self.steps = self.rejected = 0
        if name in MULTISTEP:
            self.callback_step = self._begin
        elif name != "scipy_solver":
            self.callback_accept_step = self._begin
            self.callback_reject_step = self._reject

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.nfe += 1
        return self._field(t.to(x).expand(len(x)), x)

    def _begin(self, t: Tensor, x: Tensor, h: Tensor) -> None:
        # torchdiffeq shows where a step begins: the end of the one before it.
        if self._callback is not None and self.steps > 0:
            self._callback(Progress(self.steps, self._total, float(t), x))
        self.steps += 1

    def _reject(self, t: Tensor, x: Tensor, h: Tensor) -> None:
        self.rejected += 1


def _torchdiffeq(
    field: Dynamics,
    x: Tensor,
    start: float,
    end: float,
    name: str,
    steps: int,
    atol: float,
    rtol: float,
    overshoot: bool,
    norm: Callable[[Tensor], Tensor] | None,
    options: dict[str, Any],
    callback: Callback | None,
) -> tuple[Tensor, SampleInfo]:
    from torchdiffeq import odeint

    multistep = name in MULTISTEP
    if not overshoot:
        field = _within(field, *sorted((start, end)))
    traced = _Traced(field, name, steps if multistep else None, callback)
    if multistep:
        # A grid of its own: given as output times, every state on it would be kept.
        grid = torch.tensor(time_grid(start, end, steps), dtype=x.dtype, device=x.device)
        options = {"grid_constructor": lambda func, y0, t: grid, **options}
    ends = torch.tensor([start, end], dtype=x.dtype, device=x.device)
    if not multistep and name != "scipy_solver":
        if not overshoot:
            options = {"step_t": ends[1:], **options}
        if norm is not None:
            options = {"norm": lambda error: norm(error).square().mean().sqrt(), **options}
    try:
        with warnings.catch_warnings():
            # torchdiffeq hands every solver a norm and then warns that some do not use it.
            warnings.filterwarnings("ignore", message=".*Unexpected arguments.*norm")
            result = odeint(traced, x, ends, method=name, atol=atol, rtol=rtol, options=options)[-1]
    except AssertionError as error:
        raise WavemambaError(
            f"{name}: cannot go on ({error}); the model's output may not be finite, or the tolerances are below the "
            "precision of the state: raise atol and rtol, or use float64"
        ) from error
    taken = None if name == "scipy_solver" else traced.steps
    if callback is not None:
        callback(Progress(taken or 1, taken, end, result))
    return result, SampleInfo(name, taken, traced.nfe, traced.rejected, start, end)
