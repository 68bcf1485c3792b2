"""Paths, objectives, samplers, guidance and latents; models are known only as callables `model(x, t, y=..., ...)`.

Time runs from noise, `t = 0`, to data, `t = 1`.
"""

from wavemamba.diffusion.autoencoder import Autoencoder, LatentPosterior
from wavemamba.diffusion.calls import Conditions, Model
from wavemamba.diffusion.guidance import GUIDANCE_SCHEDULES, ClassifierFreeGuidance
from wavemamba.diffusion.likelihood import LogLikelihood, bits_per_dim, log_likelihood
from wavemamba.diffusion.noise import sample_noise
from wavemamba.diffusion.objective import Objective
from wavemamba.diffusion.paths import PATHS, GVPPath, LinearPath, Path, VPPath, get_path, register_path
from wavemamba.diffusion.predictions import PREDICTIONS, WEIGHTINGS, Prediction, Sample, register_prediction
from wavemamba.diffusion.report import Progress, SampleInfo
from wavemamba.diffusion.sample_ode import sample_ode
from wavemamba.diffusion.sample_sde import (
    DIFFUSIONS,
    LAST_STEPS,
    SDE_SOLVERS,
    SdeSolver,
    diffusion_coefficient,
    register_sde_solver,
    sample_sde,
)
from wavemamba.diffusion.solvers.base import FixedStepSolver, OdeSolver, Problem, Solution
from wavemamba.diffusion.solvers.integrate import STEP_CONTROLS, integrate
from wavemamba.diffusion.solvers.registry import ODE_SOLVERS, get_solver, register_solver
from wavemamba.diffusion.time import (
    TIME_SAMPLINGS,
    LogitNormalTime,
    TimeInterval,
    TimeSampling,
    UniformTime,
    get_time_sampling,
    register_time_sampling,
)

__all__ = [
    "DIFFUSIONS",
    "GUIDANCE_SCHEDULES",
    "LAST_STEPS",
    "ODE_SOLVERS",
    "PATHS",
    "PREDICTIONS",
    "SDE_SOLVERS",
    "STEP_CONTROLS",
    "TIME_SAMPLINGS",
    "WEIGHTINGS",
    "Autoencoder",
    "ClassifierFreeGuidance",
    "Conditions",
    "FixedStepSolver",
    "GVPPath",
    "LatentPosterior",
    "LinearPath",
    "LogLikelihood",
    "LogitNormalTime",
    "Model",
    "Objective",
    "OdeSolver",
    "Path",
    "Prediction",
    "Problem",
    "Progress",
    "Sample",
    "SampleInfo",
    "SdeSolver",
    "Solution",
    "TimeInterval",
    "TimeSampling",
    "UniformTime",
    "VPPath",
    "bits_per_dim",
    "diffusion_coefficient",
    "get_path",
    "get_solver",
    "get_time_sampling",
    "integrate",
    "log_likelihood",
    "register_path",
    "register_prediction",
    "register_sde_solver",
    "register_solver",
    "register_time_sampling",
    "sample_noise",
    "sample_ode",
    "sample_sde",
]
