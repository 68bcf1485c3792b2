"""Paths, objectives, samplers, guidance and latents; models are known only as callables `model(x, t, **kwargs)`.

Time runs from noise, `t = 0`, to data, `t = 1`.
"""

from wavemamba.diffusion.guidance import SCHEDULES, ClassifierFreeGuidance
from wavemamba.diffusion.latents import Autoencoder, LatentPosterior
from wavemamba.diffusion.likelihood import LogLikelihood, bits_per_dim, log_likelihood
from wavemamba.diffusion.objective import PREDICTIONS, WEIGHTINGS, Objective
from wavemamba.diffusion.ode import sample_ode
from wavemamba.diffusion.paths import PATHS, GVPPath, LinearPath, Path, VPPath, get_path
from wavemamba.diffusion.report import Progress, SampleInfo
from wavemamba.diffusion.sde import DIFFUSIONS, LAST_STEPS, SDE_SOLVERS, diffusion_coefficient, sample_sde
from wavemamba.diffusion.solvers import ODE_SOLVERS, STEP_CONTROLS, integrate
from wavemamba.diffusion.streams import sample_noise
from wavemamba.diffusion.time import (
    TIME_SAMPLINGS,
    LogitNormalTime,
    TimeInterval,
    TimeSampling,
    UniformTime,
    get_time_sampling,
)

__all__ = [
    "DIFFUSIONS",
    "LAST_STEPS",
    "ODE_SOLVERS",
    "PATHS",
    "PREDICTIONS",
    "SCHEDULES",
    "SDE_SOLVERS",
    "STEP_CONTROLS",
    "TIME_SAMPLINGS",
    "WEIGHTINGS",
    "Autoencoder",
    "ClassifierFreeGuidance",
    "GVPPath",
    "LatentPosterior",
    "LinearPath",
    "LogLikelihood",
    "LogitNormalTime",
    "Objective",
    "Path",
    "Progress",
    "SampleInfo",
    "TimeInterval",
    "TimeSampling",
    "UniformTime",
    "VPPath",
    "bits_per_dim",
    "diffusion_coefficient",
    "get_path",
    "get_time_sampling",
    "integrate",
    "log_likelihood",
    "sample_noise",
    "sample_ode",
    "sample_sde",
]
