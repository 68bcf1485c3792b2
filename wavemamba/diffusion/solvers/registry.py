"""ODE solvers by name: those of the tables and of the other packages, and a user's own."""

from __future__ import annotations

from wavemamba.diffusion.solvers.base import FixedStepSolver, OdeSolver
from wavemamba.diffusion.solvers.per_sample import EmbeddedSolver
from wavemamba.diffusion.solvers.tableaus import EMBEDDED, EXPLICIT, runge_kutta_step
from wavemamba.diffusion.solvers.torchdiffeq_scipy import (
    ADAPTIVE_METHODS,
    AdaptiveSolver,
    MultistepSolver,
    ScipySolver,
)
from wavemamba.registry import Registry

ODE_SOLVERS: Registry[OdeSolver] = Registry("solver", "register_solver adds one of your own")
"""Every solver of torchdiffeq under its own name, "heun" for "heun2", and what was registered."""


def register_solver(solver: OdeSolver) -> OdeSolver:
    """Let a solver be chosen by its `name`; returns it.

    Raises:
        ConfigError: the name stands for another solver already.
    """
    ODE_SOLVERS.add(solver.name, solver)
    return solver


for _name, _tableau in EXPLICIT.items():
    register_solver(FixedStepSolver(_name, runge_kutta_step(_tableau)))
ODE_SOLVERS.add("heun", ODE_SOLVERS.find("heun2"))
register_solver(MultistepSolver("explicit_adams", explicit=True))
register_solver(MultistepSolver("implicit_adams", explicit=False))
register_solver(MultistepSolver("fixed_adams", explicit=False))
_shared = {name: AdaptiveSolver(name) for name in ADAPTIVE_METHODS}
for _name, _tableau in EMBEDDED.items():
    register_solver(EmbeddedSolver(_name, _tableau, shared=_shared.pop(_name, None)))
for _solver in _shared.values():
    register_solver(_solver)
register_solver(ScipySolver())


def get_solver(solver: OdeSolver | str) -> OdeSolver:
    """A solver by its name; one of the user's own is returned as it is.

    Raises:
        ConfigError: no such solver.
    """
    return solver if isinstance(solver, OdeSolver) else ODE_SOLVERS.find(solver)
