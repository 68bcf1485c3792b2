"""The options of commands that sample."""

from __future__ import annotations

import argparse

import torch

from wavemamba.commands.parser import RecipeParser, number
from wavemamba.diffusion import DIFFUSIONS, GUIDANCE_SCHEDULES, LAST_STEPS, ODE_SOLVERS, SDE_SOLVERS, STEP_CONTROLS
from wavemamba.sampling import Sampler, Settings
from wavemamba.sampling.precision import AUTO, DTYPES


def add_sampling_options(parser: RecipeParser) -> None:
    """Add the options that `settings_from` and `sampler_from` read."""
    default = Settings()
    add = parser.add_argument_group("sampling").add_argument
    add("--solver", choices=sorted({*ODE_SOLVERS, *SDE_SOLVERS}), help="of the probability flow, or stochastic")
    add("--steps", type=number(int, 1), help="of a fixed-step solver (default: 50, with noise 250)")
    add("--atol", type=number(float, 0), default=default.atol, help="absolute tolerance of an adaptive solver")
    add("--rtol", type=number(float, 0), default=default.rtol, help="relative tolerance of an adaptive solver")
    add("--step-control", choices=sorted(STEP_CONTROLS), help="who shares the steps of an adaptive solver")
    add("--max-evaluations", type=number(int, 1), default=default.max_evaluations,
        help="calls of the model after which an adaptive solver gives up")  # fmt: skip
    add("--diffusion", choices=sorted(DIFFUSIONS), help="sample with noise on the way, of this form (default: without)")
    add("--diffusion-norm", type=number(float, 0), default=default.diffusion_norm, help="scale of that noise")
    add("--last-step", choices=LAST_STEPS, default=default.last_step, help="how sampling with noise ends")
    add("--last-step-size", type=number(float, 0, 1, above=True), default=default.last_step_size,
        help="length of that step")  # fmt: skip
    add("--guidance", type=number(float, 0), help="classifier-free guidance; 1: none")
    add("--guidance-schedule", choices=sorted(GUIDANCE_SCHEDULES), default="constant", help="over time")
    add("--guidance-power", type=number(float, 0, above=True), default=default.guidance_power,
        help="of the power-cosine schedule")  # fmt: skip
    add("--guidance-interval", type=float, nargs=2, default=default.guidance_interval, metavar=("FROM", "TO"),
        help="times in which guidance acts, 0 noise, 1 data")  # fmt: skip
    add("--dtype", choices=[AUTO, *sorted(DTYPES)],
        help="of the model; auto: bfloat16 where that is faster, else float32; solvers keep float32 at least (default: "
        "as saved)")  # fmt: skip
    add("--autoencoder", help="folder or hub id that decodes latents (default: the one of the training run)")
    add("--revision", help="commit, tag or branch of a hub repository; a commit pins what is loaded")


def settings_from(args: argparse.Namespace) -> Settings:
    """How to sample, from the options."""
    return Settings(
        solver=args.solver,
        steps=args.steps,
        atol=args.atol,
        rtol=args.rtol,
        step_control=args.step_control,
        max_evaluations=args.max_evaluations,
        diffusion=args.diffusion,
        diffusion_norm=args.diffusion_norm,
        last_step=args.last_step,
        last_step_size=args.last_step_size,
        guidance=args.guidance,
        guidance_schedule=args.guidance_schedule,
        guidance_power=args.guidance_power,
        guidance_interval=tuple(args.guidance_interval),
    )


def sampler_from(args: argparse.Namespace, model: str, device: torch.device | str) -> Sampler:
    """A sampler of a saved model, from the options."""
    return Sampler.from_pretrained(
        model, device=device, dtype=args.dtype, autoencoder=args.autoencoder, revision=args.revision
    )
