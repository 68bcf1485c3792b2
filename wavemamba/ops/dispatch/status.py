"""Which backend can run which op on this machine, and why not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wavemamba.ops.dispatch.backend import Case
from wavemamba.ops.dispatch.tables import tables


@dataclass(frozen=True)
class BackendStatus:
    """One line of `backends()`."""

    op: str
    backend: str
    device: str
    reason: str | None
    """Why it cannot run, or None where it can."""

    def __str__(self) -> str:
        return (
            f"{self.op:<16}{self.device:<6}{self.backend:<11}{'yes' if self.reason is None else 'no: ' + self.reason}"
        )


def backends() -> tuple[BackendStatus, ...]:
    """Say, for float32 tensors on each device of this machine, which backend can run which op and why not.

    Returns:
        One `BackendStatus` for each op, device and backend; within an op and device the fastest comes first, and the
        first one without a `reason` is what "auto" takes.
    """
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return tuple(
        BackendStatus(op, backend.name, device, backend.refuses(Case(op, device, torch.float32)))
        for op, table in tables().items()
        for device in devices
        for backend in table
    )
