"""When a run stops, and whether it may go on."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from wavemamba.errors import ConfigError


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
        if threading.current_thread() is not threading.main_thread():
            return self  # handlers belong to the main thread
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
            "folder as out, or accept_changes to go on from its weights with the new settings"
        )
