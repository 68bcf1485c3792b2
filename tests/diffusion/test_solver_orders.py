"""Each solver converges at its order, and is the method that its name says."""

from __future__ import annotations

import math

import pytest
import torch

from wavemamba.diffusion import integrate, sample_noise
from wavemamba.diffusion.solvers.per_sample import EmbeddedSolver
from wavemamba.diffusion.solvers.tableaus import EMBEDDED, Tableau, combine
from wavemamba.errors import ConfigError

ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun": 2, "heun3": 3, "rk4": 4}
MULTISTEP = ("explicit_adams", "implicit_adams", "fixed_adams")


def start(batch: int = 5) -> torch.Tensor:
    return sample_noise((batch, 2, 3), seeds=range(batch), dtype=torch.float64)


def bend(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`x' = x^2 cos(t)`, solved by `x0 / (1 - x0 sin(t))`: nonlinear, so that every order condition counts."""
    return x**2 * torch.cos(t).view(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize("solver", ORDERS)
def test_order_of_convergence(solver: str) -> None:
    x0 = torch.linspace(-1.0, 0.8, 7, dtype=torch.float64)[:, None]
    exact = x0 / (1 - x0 * math.sin(1.0))
    errors = [(integrate(bend, x0, 0.0, 1.0, solver=solver, steps=n)[0] - exact).abs().max() for n in (80, 160)]
    measured = math.log2(errors[0] / errors[1])
    assert abs(measured - ORDERS[solver]) < 0.2, f"order {measured:.2f}, errors {errors}"


@pytest.mark.parametrize("solver", MULTISTEP)
def test_multistep_solvers_converge(solver: str) -> None:
    """Order four: their first steps are Runge-Kutta steps of that order."""
    x0 = torch.linspace(-1.0, 0.5, 7, dtype=torch.float64)[:, None]
    exact = x0 / (1 - x0 * math.sin(1.0))
    errors = []
    for n in (20, 40):
        x, info = integrate(bend, x0, 0.0, 1.0, solver=solver, steps=n, rtol=1e-7, atol=1e-7)
        assert info.steps == n
        errors.append((x - exact).abs().max())
    assert errors[0] < 1e-4
    assert math.log2(errors[0] / errors[1]) > 3.7


# Their orders, and numbers of steps at which the leading error is far from both the others and the rounding.
EMBEDDED_ORDERS = {
    "adaptive_heun": (2, 16, 32),
    "fehlberg2": (2, 16, 32),
    "bosh3": (3, 16, 32),
    "dopri5": (5, 16, 64),
    "dopri8": (8, 3, 6),
}


def measured_order(solve, few: int, many: int) -> float:
    """Of `solve(x0, steps)`, for the mean error over many starts: single ones cross zero."""
    x0 = torch.linspace(-1.5, 0.8, 40, dtype=torch.float64)[:, None]
    exact = x0 / (1 - x0 * math.sin(1.0))
    errors = [(solve(x0, n) - exact).abs().mean() for n in (few, many)]
    return math.log(errors[0] / errors[1]) / math.log(many / few)


@pytest.mark.parametrize("solver", EMBEDDED_ORDERS)
def test_order_of_the_adaptive_solvers(solver: str) -> None:
    """With tolerances that accept everything the steps end where the grid says, and so are equal."""

    def solve(x0: torch.Tensor, n: int) -> torch.Tensor:
        options = {"step_t": torch.linspace(0, 1, n + 1, dtype=torch.float64)[1:], "first_step": 2 / n}
        x, info = integrate(bend, x0, 0.0, 1.0, solver=solver, atol=1e9, rtol=1e9, options=options)
        assert (info.steps, info.rejected) == (n, 0)
        return x

    order, *steps = EMBEDDED_ORDERS[solver]
    assert abs(measured_order(solve, *steps) - order) < 0.3


@pytest.mark.parametrize("solver", EMBEDDED)
def test_order_of_the_methods_with_steps_per_sample(solver: str) -> None:
    method = EMBEDDED[solver]

    def solve(x: torch.Tensor, n: int) -> torch.Tensor:
        for step in range(n):
            times = [torch.full((len(x),), (step + c) / n, dtype=x.dtype) for c in method.nodes]
            slopes = method.slopes(lambda i, state, times=times: bend(times[i], state), x, 1 / n)
            x = x + combine(method.weights, slopes) / n
        return x

    order, *steps = EMBEDDED_ORDERS[solver]
    assert abs(measured_order(solve, *steps) - order) < 0.3
    assert method.order == order


def test_a_row_of_the_table_is_all_that_an_embedded_method_needs() -> None:
    row = Tableau(2, (0.0, 1.0, 1.0), ((), (1.0,), (0.5, 0.5)), (0.5, 0.5, 0.0), (-0.5, 0.5, 0.0))
    solver, x0 = EmbeddedSolver("heun_euler", row), torch.linspace(-1.5, 0.8, 9, dtype=torch.float64)[:, None]
    exact = x0 / (1 - x0 * math.sin(1.0))
    x, info = integrate(bend, x0, 0.0, 1.0, solver=solver, step_control="sample", atol=1e-6, rtol=1e-6)
    assert (x - exact).abs().max() < 1e-4
    assert info.solver == "heun_euler"
    with pytest.raises(ConfigError, match="step_control='sample'"):
        integrate(bend, x0, 0.0, 1.0, solver=solver)


@pytest.mark.parametrize("solver", [s for s in ORDERS if s != "heun"])
def test_fixed_steps_equal_torchdiffeq(solver: str) -> None:
    from torchdiffeq import odeint

    x0 = start()
    grid = torch.linspace(0, 1, 8, dtype=torch.float64)
    theirs = odeint(lambda t, x: bend(t.expand(len(x)), 0.3 * x), x0, grid, method=solver)[-1]
    ours, _ = integrate(lambda t, x: bend(t, 0.3 * x), x0, 0.0, 1.0, solver=solver, steps=7)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
