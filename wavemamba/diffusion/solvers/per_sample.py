"""Embedded Runge-Kutta with one step size per sample: a sample does not depend on its neighbours in the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wavemamba.diffusion.objective import rows
from wavemamba.diffusion.solvers.base import REMEDY, OdeSolver, Problem, Solution, refuse_options
from wavemamba.diffusion.solvers.tableaus import Tableau, advance, combine
from wavemamba.errors import SolverError

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
"""The step controller's constants, torchdiffeq's."""


def row_rms(x: Tensor) -> Tensor:
    """Root mean square of every sample: (B, ...) to (B,)."""
    return rows(x).square().mean(1).sqrt()


class EmbeddedSolver(OdeSolver):
    """A method of `EMBEDDED`, with steps of its own for every sample.

    Args:
        name: what it is called.
        method: its tableau.
        shared: the same method where the samples of a batch share their steps; None: it has own steps alone.
    """

    adaptive = True

    def __init__(self, name: str, method: Tableau, shared: OdeSolver | None = None) -> None:
        self.name, self.method, self.shared = name, method, shared
        if shared is not None:
            self.controls, self.overshoots = ("batch", "sample"), shared.overshoots
        else:
            self.controls = ("sample",)

    def integrate(self, problem: Problem) -> Solution:
        """Own steps here, shared ones by `shared`."""
        if self.shared is not None and problem.step_control == "batch":
            return self.shared.integrate(problem)
        refuse_options(self.name, problem.options)
        return integrate_per_sample(self.name, self.method, problem)


def integrate_per_sample(solver: str, method: Tableau, problem: Problem) -> Solution:
    """Integrate `dx/dt = slope(t, x)` with error control sample by sample.

    Every sample has its own time and step; one batched call of the field serves them all. Those that are done wait,
    unchanged, for the others. The last step ends exactly at the end. Once per step the host waits for the device, to
    learn whether all are done.

    Args:
        solver: its name, for errors.
        method: with an embedded one, its last stage at the end of the step.
        problem: what to integrate; the bound on its evaluations ends the loop.

    Raises:
        SolverError: a step became too small to advance the time, or the state stopped being finite.
    """
    evaluate, x = problem.slope, problem.x
    atol, rtol, norm = problem.atol, problem.rtol, problem.norm or row_rms
    steps, rejected = 0, 0
    # In float32 the sum of many small steps would miss the end; not every device has float64.
    clock = torch.float32 if x.device.type == "mps" else torch.float64
    t = torch.full((len(x),), problem.start, device=x.device, dtype=clock)
    goal = torch.full_like(t, problem.end)
    slope = evaluate(t, x)
    h = _first_step(evaluate, t, x, slope, goal, method, atol, rtol, norm)
    while True:
        remaining = goal - t
        last = h.abs() >= remaining.abs()
        h = torch.where(last, remaining, h)
        moved, error, final = _attempt(evaluate, method, t, x, slope, h)
        tolerance = atol + rtol * torch.maximum(x.abs(), moved.abs())
        ratio = norm(_in_units(error, tolerance)).to(clock)
        ratio = torch.where(ratio.isfinite(), ratio, torch.full_like(ratio, torch.inf))
        active = remaining != 0
        accepted = active & (ratio <= 1)
        wide = _like(accepted, x)
        x, slope = torch.where(wide, moved, x), torch.where(wide, final, slope)
        t = torch.where(accepted, torch.where(last, goal, t + h), t)
        factor = (SAFETY * ratio.clamp_min(1e-10) ** (-1 / method.order)).clamp(SHRINK, GROW)
        # A step that was good enough is not followed by a smaller one.
        h = h * torch.where(accepted, factor.clamp_min(1.0), factor)
        # Also true where the step is not a number.
        stuck = (goal != t) & ~((t + h - t).abs() > 0)
        done, failed, slowest, refused = torch.stack(
            [(t == goal).all(), stuck.any(), (t - goal).abs().amax(), (active & ~accepted).any()]
        ).tolist()
        steps += 1
        rejected += int(refused)
        if failed:
            raise SolverError(
                f"{solver}: the step became too small after {steps} attempts; the model's output may not be finite, or "
                f"the tolerances are below the precision of the state: {REMEDY}"
            )
        behind = slowest if problem.end > problem.start else -slowest
        problem.report(steps, None, problem.end - behind, x)
        if done:
            return Solution(x, steps, rejected)


def _in_units(error: Tensor, tolerance: Tensor) -> Tensor:
    # With atol=0 a state of 0 has no tolerance; without an error it needs none.
    return torch.where(error == 0, error, error / tolerance)


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))


def _attempt(
    evaluate: Callable[[Tensor, Tensor], Tensor], method: Tableau, t: Tensor, x: Tensor, slope: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step: the new state, the error estimate, and the slope at the new state."""
    wide = _like(h, x).to(x.dtype)

    def at_node(i: int, state: Tensor) -> Tensor:
        return slope if i == 0 else evaluate(t + method.nodes[i] * h, state)

    slopes = method.slopes(at_node, x, wide)
    return advance(x, wide, combine(method.weights, slopes)), wide * combine(method.errors, slopes), slopes[-1]


def _first_step(
    evaluate: Callable[[Tensor, Tensor], Tensor],
    t: Tensor,
    x: Tensor,
    slope: Tensor,
    goal: Tensor,
    method: Tableau,
    atol: float,
    rtol: float,
    norm: Callable[[Tensor], Tensor],
) -> Tensor:
    """A first step per sample, signed (Hairer, Norsett and Wanner, Solving ODEs I, section II.4)."""
    direction = torch.sign(goal - t)
    scale = atol + rtol * x.abs()
    size, speed = norm(_in_units(x, scale)), norm(_in_units(slope, scale))
    tiny = torch.full_like(size, 1e-6)
    guess = torch.where((size < 1e-5) | (speed < 1e-5), tiny, 0.01 * size / speed.clamp_min(1e-30))
    guess = torch.minimum(guess.to(t.dtype), (goal - t).abs())
    ahead = evaluate(t + direction * guess, x + _like(direction * guess, x).to(x.dtype) * slope)
    bend = norm(_in_units(ahead - slope, scale)) / guess
    steepest = torch.maximum(speed.to(t.dtype), bend.to(t.dtype))
    by_bend = torch.where(
        steepest <= 1e-15,
        torch.maximum(tiny.to(t.dtype), guess * 1e-3),
        (0.01 / steepest.clamp_min(1e-30)) ** (1 / method.order),
    )
    return direction * torch.minimum(100 * guess, by_bend)
