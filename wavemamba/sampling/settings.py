"""How a sample is drawn: everything that moves it, beside the model, the classes, the seeds and the size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wavemamba.checks import expect_number
from wavemamba.diffusion import (
    ODE_SOLVERS,
    SDE_SOLVERS,
    Conditions,
    Model,
    Objective,
    OdeSolver,
    SampleInfo,
    SdeSolver,
    get_solver,
    sample_ode,
    sample_sde,
)
from wavemamba.diffusion.guidance import GuidanceSchedule
from wavemamba.diffusion.report import OnStep
from wavemamba.diffusion.sample_sde import DiffusionForm
from wavemamba.diffusion.solvers.integrate import MAX_EVALUATIONS
from wavemamba.errors import ConfigError
from wavemamba.names import choose


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to sample.

    Args:
        solver: a name, an `OdeSolver` or an `SdeSolver`; None: "dopri5", or "euler_maruyama" with a `diffusion`.
        steps: of a fixed-step solver; None: 50, or 250 of a stochastic one.
        atol: absolute tolerance of an adaptive solver.
        rtol: relative tolerance of an adaptive solver.
        step_control: who shares the steps of an adaptive solver; None: nobody. A solver that cannot do that then draws
            one sample at a time, so that a sample depends on its own seed alone.
        max_evaluations: calls of the model after which an adaptive solver gives up.
        diffusion: form of the noise of a stochastic solver; None: the probability flow, without noise on the way. A
            solver that is stochastic alone then takes "sigma".
        diffusion_norm: scale of `diffusion`.
        last_step: how a stochastic solver ends, see `sample_sde`.
        last_step_size: length of that step.
        guidance: scale of classifier-free guidance; 1: none; None: 1.5 where the model has a null class.
        guidance_interval: times in which guidance acts, 0 noise, 1 data.
        guidance_schedule: guidance over time, see `ClassifierFreeGuidance`.
        guidance_power: of the power-cosine schedule.

    Raises:
        ConfigError: an unknown name, or a number out of range.
    """

    solver: OdeSolver | SdeSolver | str | None = None
    steps: int | None = None
    atol: float = 1e-6
    rtol: float = 1e-3
    step_control: str | None = None
    max_evaluations: int = MAX_EVALUATIONS
    diffusion: DiffusionForm | str | None = None
    diffusion_norm: float = 1.0
    last_step: str | None = "mean"
    last_step_size: float = 0.04
    guidance: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_schedule: GuidanceSchedule | str = "constant"
    guidance_power: float = 4.0

    def __post_init__(self) -> None:
        _ = self.method  # an unknown name is told now
        if self.guidance is not None:
            expect_number("guidance", self.guidance, least=0, remedy="1 is no guidance")

    @property
    def method(self) -> OdeSolver | SdeSolver:
        """The solver."""
        if isinstance(self.solver, OdeSolver | SdeSolver):
            if isinstance(self.solver, OdeSolver) and self.diffusion is not None:
                raise ConfigError(f"diffusion: expected None with the solver {self.solver.name!r}, which adds no noise")
            return self.solver
        if self.diffusion is not None:
            return SDE_SOLVERS.find(self.solver or "euler_maruyama")
        if self.solver is None:
            return get_solver("dopri5")
        name = choose("solver", self.solver, dict.fromkeys((*ODE_SOLVERS, *SDE_SOLVERS)))
        return ODE_SOLVERS.find(name) if name in ODE_SOLVERS else SDE_SOLVERS.find(name)

    @property
    def alone(self) -> bool:
        """The samples of a batch would share steps: they are to be drawn one by one."""
        method = self.method
        return isinstance(method, OdeSolver) and self.step_control is None and "sample" not in method.controls

    def arguments(self) -> dict[str, Any]:
        """What the sampler of the solver's kind is called with: defaults filled in, what does not apply left out."""
        method = self.method
        if isinstance(method, OdeSolver):
            return {
                "steps": 50 if self.steps is None else self.steps,
                "atol": self.atol,
                "rtol": self.rtol,
                "step_control": self.step_control or ("sample" if "sample" in method.controls else "batch"),
                "max_evaluations": self.max_evaluations,
            }
        return {
            "steps": 250 if self.steps is None else self.steps,
            "diffusion": "sigma" if self.diffusion is None else self.diffusion,
            "diffusion_norm": self.diffusion_norm,
            "last_step": self.last_step,
            "last_step_size": self.last_step_size,
        }

    def draw(
        self,
        model: Model,
        noise: Tensor,
        objective: Objective,
        y: Tensor | None,
        conditions: Conditions,
        seeds: list[int],
        callback: OnStep,
    ) -> tuple[Tensor, SampleInfo]:
        """Carry noise to data; the seeds are those of the increments of a stochastic solver."""
        shared: dict[str, Any] = {**self.arguments(), "callback": callback, "return_info": True}
        shared |= {"y": y, "conditions": conditions}
        method = self.method
        if isinstance(method, OdeSolver):
            return sample_ode(model, noise, objective, solver=method, **shared)
        return sample_sde(model, noise, objective, solver=method, generator=seeds, **shared)

    def to_dict(self, guidance: float) -> dict[str, Any]:
        """Everything that applies, as plain values; a part of the user's own by its name."""
        kind = "ode" if isinstance(self.method, OdeSolver) else "sde"
        found = {"kind": kind, "solver": self.method.name, **self.arguments(), "guidance": guidance}
        if guidance != 1:
            found |= {
                "guidance_interval": self.guidance_interval,
                "guidance_schedule": self.guidance_schedule,
                "guidance_power": self.guidance_power,
            }
        return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if callable(value):
        return getattr(value, "__qualname__", repr(value))
    return list(value) if isinstance(value, tuple) else value
