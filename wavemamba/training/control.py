"""When a run learns how fast, when it stops, and whether it may go on."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from wavemamba.errors import CheckpointError, ConfigError
from wavemamba.names import choose

SCHEDULES = ("constant", "cosine")


def learning_rate_factor(schedule: str, *, warmup: int, steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied with, as a function of the steps done.

    Linear from `1 / warmup` to 1 over the first `warmup` steps; then 1, or `(1 + cos(pi p)) / 2` with `p` running from
    0 to 1 over the steps that are left.

    Args:
        schedule: "constant" or "cosine".
        warmup: steps, >= 0.
        steps: length of the run, >= 1.

    Raises:
        ConfigError: an unknown schedule.
    """
    schedule = choose("schedule", schedule, SCHEDULES)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a request that the training loop looks at; the second one kills.

    A context manager: the handlers that were there before come back at its end.

    Attributes:
        name: the signal that came, or None.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, step: int, device: torch.device, *, every: int = 10) -> bool:
        """Whether to stop after `step`: at once in a single process, else once any process was told to.

        Processes ask one another every so many steps only, since every process has to wait for the answer.
        """
        if not dist.is_initialized():
            return self.name is not None
        if step % every:
            return False
        told = torch.tensor(float(self.name is not None), device=device)
        dist.all_reduce(told)
        return told.item() > 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(number, self._before[signal.Signals(number)] or signal.SIG_DFL)


def check_same_settings(found: dict[str, Any], given: dict[str, Any], where: str) -> None:
    """Refuse to go on with a run under other settings than it was begun with.

    Raises:
        ConfigError: lists every setting that differs.
    """
    differing = sorted(name for name in {*found, *given} if found.get(name) != given.get(name))
    if differing:
        listed = "; ".join(f"{name} was {found.get(name)!r}, now {given.get(name)!r}" for name in differing)
        raise ConfigError(
            f"{where}: expected the settings that the run there was begun with, got others: {listed}. Give another "
            "folder with --out, or --accept-changes to go on from its weights with the new settings"
        )


def check_same_checkpoint(step: int | None, folder: str | Path) -> None:
    """Refuse to go on unless all processes found the same checkpoint; every process has to call it, and waits.

    Args:
        step: of the checkpoint that this process loaded; None: there is none.
        folder: where it looked.

    Raises:
        CheckpointError: the processes do not see the same files.
    """
    if not dist.is_initialized():
        return
    found: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, step)
    if len(set(found)) > 1:
        listed = ", ".join(f"process {rank}: {step}" for rank, step in enumerate(found))
        raise CheckpointError(
            f"{folder}: expected every process to find the same checkpoint, got steps {listed}; give a folder on "
            "a file system that all machines share"
        )
