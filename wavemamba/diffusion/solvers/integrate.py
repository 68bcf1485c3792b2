"""Integrating `dx/dt = field(t, x)` with any solver: by name, or one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from wavemamba.checks import expect_count, expect_number
from wavemamba.diffusion.objective import expect_batch
from wavemamba.diffusion.report import OnStep, SampleInfo
from wavemamba.diffusion.solvers.base import Dynamics, Evaluations, OdeSolver, Problem, expect_finite
from wavemamba.diffusion.solvers.registry import ODE_SOLVERS, get_solver
from wavemamba.errors import ConfigError
from wavemamba.names import choose

STEP_CONTROLS = ("batch", "sample")

MAX_EVALUATIONS = 20_000
"""Evaluations that an adaptive solver may take, unless told otherwise; usual samples take some hundred."""


def integrate(
    field: Dynamics,
    x: Tensor,
    start: float,
    end: float,
    *,
    solver: OdeSolver | str = "dopri5",
    steps: int = 50,
    atol: float = 1e-6,
    rtol: float = 1e-3,
    step_control: str = "batch",
    overshoot: bool = False,
    max_evaluations: int = MAX_EVALUATIONS,
    norm: Callable[[Tensor], Tensor] | None = None,
    options: dict[str, Any] | None = None,
    callback: OnStep | None = None,
) -> tuple[Tensor, SampleInfo]:
    """Integrate from `start` to `end`.

    The explicit Runge-Kutta methods of fixed step run here, without waiting for the device before the end; the others
    run in torchdiffeq or SciPy, or here with `step_control="sample"`.

    Args:
        field: the right-hand side, called with one time per sample and a copy of the state.
        x: (B, ...), the state at `start`, floating; never written to.
        start: first time.
        end: last time; may lie before `start`.
        solver: a name in `ODE_SOLVERS`, or an `OdeSolver`.
        steps: equal steps of a fixed-step or multistep method, >= 1; adaptive ones choose their own.
        atol: absolute tolerance of adaptive methods, and of the corrector of implicit_adams, >= 0.
        rtol: relative tolerance, >= 0.
        step_control: `"batch"`: the samples of a batch share their steps, chosen from the error over all of them (as
            torchdiffeq does). `"sample"`: every sample has its own (dopri5, bosh3 and every other
            method in `EMBEDDED`, and explicit fixed steps).
        overshoot: let adaptive solvers with shared steps pass `end` and interpolate back, torchdiffeq's own way. The
            field is then evaluated beyond `end`, and the interpolant's error joins the method's: with bosh3 and dopri8
            it is the larger by orders of magnitude. Otherwise no time outside of the interval is asked for.
        max_evaluations: calls of the field after which an adaptive solver gives up.
        norm: (B, ...) to (B,), size of an error in units of the tolerance; None: root mean square.
        options: torchdiffeq's or SciPy's options, for solvers that run there.
        callback: called after every step.

    Returns:
        The state at `end`, and what it took.

    Raises:
        ConfigError: an unknown name, a bad number, or an option that the solver does not have.
        ShapeError: `x` is no floating tensor.
        SolverError: an adaptive solver cannot go on, or a number is not finite.
    """
    method = get_solver(solver)
    if not isinstance(options, Mapping | None):
        raise ConfigError(f"options: expected a mapping of names to values, got {options!r}")
    if not (callback is None or callable(callback)):
        raise ConfigError(f"callback: expected a function of a Progress, got {callback!r}")
    control = choose("step_control", step_control, STEP_CONTROLS)
    count = expect_count("steps", steps, 1)
    most = expect_count("max_evaluations", max_evaluations, 1)
    absolute, relative = expect_number("atol", atol, least=0), expect_number("rtol", rtol, least=0)
    if method.adaptive and absolute == relative == 0:
        raise ConfigError("atol and rtol: expected one of them above 0, got 0 and 0; rtol=1e-3 is usual")
    if control not in method.controls:
        able = [name for name in ODE_SOLVERS if control in ODE_SOLVERS.find(name).controls]
        raise ConfigError(
            f"step_control={control!r}: expected one of {', '.join(map(repr, able))}, got solver {method.name!r}; "
            f"or use step_control={method.controls[0]!r}"
        )
    if overshoot and not (method.overshoots and control == "batch"):
        raise ConfigError(f"overshoot: expected False with solver {method.name!r} and step_control={control!r}")
    first, last = (expect_number(name, value) for name, value in (("start", start), ("end", end)))
    state = expect_batch("x", x)
    if state.numel() == 0 or first == last:
        return state.clone(), SampleInfo(method.name, 0, 0, 0, first, last)
    expect_finite("x", state, "the start")
    within = None if overshoot else (min(first, last), max(first, last))
    slope = Evaluations(field, within, most if method.adaptive else None, method.name)
    arrived = method.integrate(
        Problem(
            slope=slope,
            x=state.clone(),
            start=first,
            end=last,
            steps=count,
            atol=absolute,
            rtol=relative,
            step_control=control,
            overshoot=overshoot,
            norm=norm,
            options=dict(options or {}),
            callback=callback,
        )
    )
    if not isinstance(arrived.x, Tensor) or arrived.x.shape != state.shape:
        got = tuple(arrived.x.shape) if isinstance(arrived.x, Tensor) else type(arrived.x).__name__
        raise ConfigError(f"{method.name}: expected a solver to return the shape {tuple(state.shape)}, got {got}")
    expect_finite(method.name, arrived.x, "the result; the model may diverge: take more steps, or look at its output")
    return arrived.x, SampleInfo(method.name, arrived.steps, slope.count, arrived.rejected, first, last)
