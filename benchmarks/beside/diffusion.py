"""ODE solvers beside torchdiffeq, the sampler beside diffusers' scheduler in a loop, scores beside torch-fidelity."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import wavemamba
from beside.contest import Contest, Side, alive, normal
from wavemamba.diffusion import Objective, integrate, sample_noise
from wavemamba.metrics import frechet_distance, precision_recall

STATES = [(1, 64), (16, 4096), (64, 16384)]
STEPS = 20
FIXED = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk4": "rk4"}
ADAPTIVE = ("bosh3", "dopri5", "dopri8")


def decay(t: Tensor, x: Tensor) -> Tensor:
    """A field that costs next to nothing, so that the solver's own work shows."""
    return -x


def fixed(name: str, batch: int, width: int) -> tuple[Side, Side]:
    from torchdiffeq import odeint

    x = normal(batch, width)
    times = torch.tensor([0.0, 1.0])

    def peer(x: Tensor) -> Tensor:
        return odeint(decay, x, times, method=FIXED[name], options={"step_size": 1 / STEPS})[-1]

    def ours(x: Tensor) -> Tensor:
        return integrate(decay, x, 0, 1, solver=name, steps=STEPS)[0]

    return Side(call=ours, inputs=(x,)), Side(call=peer, inputs=(x.clone(),))


def adaptive(name: str, batch: int, width: int) -> tuple[Side, Side]:
    from torchdiffeq import odeint

    x = normal(batch, width)
    times = torch.tensor([0.0, 1.0])

    def peer(x: Tensor) -> Tensor:
        return odeint(decay, x, times, method=name, rtol=1e-5, atol=1e-7)[-1]

    def ours(x: Tensor) -> Tensor:
        return integrate(decay, x, 0, 1, solver=name, rtol=1e-5, atol=1e-7, overshoot=True)[0]

    return Side(call=ours, inputs=(x,)), Side(call=peer, inputs=(x.clone(),))


def sampler(name: str, width: int, count: int) -> tuple[Side, Side]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    small = {"img_size": 8, "depth": 2, "dim": width, "num_classes": 10}
    heads = {"num_heads": 2} if name.startswith("dit") or name.startswith("sit") else {}
    model = alive(wavemamba.create_model(name, **small, **heads)).eval()
    ours = wavemamba.Sampler(model, Objective("linear", "velocity"))
    seeds, classes = list(range(count)), [i % 10 for i in range(count)]
    scheduler = FlowMatchEulerDiscreteScheduler()

    def draw() -> Tensor:
        return ours(classes=classes, seeds=seeds, guidance=1.0, solver="euler", steps=STEPS, progress=False).images

    def loop() -> Tensor:
        scheduler.set_timesteps(sigmas=[1 - i / STEPS for i in range(STEPS)])
        x = sample_noise((count, 4, 8, 8), seeds=seeds)
        y = torch.tensor(classes)
        for sigma, time in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
            velocity = -model(x, (1 - sigma).expand(count), y)
            x = scheduler.step(velocity, time, x).prev_sample
        return x

    return Side(call=draw, inputs=()), Side(call=torch.no_grad()(loop), inputs=())


def frechet(rows: int, width: int) -> tuple[Side, Side]:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    both = normal(rows, width).double(), normal(rows, width, seed=1).double() * 1.5 + 0.1

    def peer(samples: Tensor, reference: Tensor) -> Tensor:
        found = (fid_features_to_statistics(features) for features in (samples, reference))
        return torch.tensor(fid_statistics_to_metric(*found, verbose=False)[KEY_METRIC_FID])

    ours = Side(call=lambda *given: torch.tensor(frechet_distance(*given)), inputs=both)
    return ours, Side(call=peer, inputs=both)


def precision(rows: int, width: int) -> tuple[Side, Side]:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    both = normal(rows, width), normal(rows, width, seed=1) * 1.1

    def peer(samples: Tensor, reference: Tensor) -> Tensor:
        return torch.tensor([float(score) for score in calculate_precision_recall_full(samples, reference, 3)])

    ours = Side(call=lambda *given: torch.tensor(precision_recall(*given)), inputs=both)
    return ours, Side(call=peer, inputs=both)


CONTESTS = [
    *(
        Contest(name=f"solver: {name}", peer="torchdiffeq", make=make, sizes=[(name, *state) for state in STATES])
        for names, make in ((FIXED, fixed), (ADAPTIVE, adaptive))
        for name in names
    ),
    *(
        Contest(
            name=f"Sampler: {name}, {STEPS} steps of Euler",
            peer="a loop with diffusers' scheduler",
            make=functools.partial(sampler, name),
            sizes=[(32, 1), (64, 4), (128, 16)],
            trains=False,
            tolerance=1e-4,
        )
        for name in ("sit_s2", "dimsum_s2")
    ),
    Contest(
        name="metrics: frechet_distance",
        peer="torch-fidelity",
        make=frechet,
        sizes=[(256, 64), (2048, 256), (2048, 1024)],
        trains=False,
    ),
    Contest(
        name="metrics: precision_recall",
        peer="torch-fidelity",
        make=precision,
        sizes=[(64, 64), (512, 256), (2048, 2048)],
        trains=False,
        tolerance=1e-2,
    ),
]
