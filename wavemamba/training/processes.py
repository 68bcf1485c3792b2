"""What the processes of a run tell one another."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(own: Value) -> list[Value]:
    """What every process says, in the order of their numbers; every process has to call it, and waits."""
    if not dist.is_initialized():
        return [own]
    everyone: list[Value] = [own] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone
