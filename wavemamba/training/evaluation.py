"""The loss on examples that were kept out of training."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import default_collate

from wavemamba.training.data import ExampleSource
from wavemamba.training.randomness import generator_for

Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""`loss(x: (B, c, h, w), y: (B,), generator) -> (B,)`; `generator` draws noise and times."""


@torch.no_grad()
def held_out_loss(
    loss: Loss, source: ExampleSource, *, batch_size: int, seed: int, device: torch.device | str = "cpu"
) -> float:
    """Mean loss over `source`, with the same noise and times every time it is called; all processes take part.

    Args:
        loss: of every example of a batch.
        source: what was kept out of training, not empty.
        batch_size: over all processes.
        seed: of noise and times.
        device: where `loss` computes.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    size, count = max(1, batch_size // processes), len(source)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, count, size * processes):
        # Every process runs every batch, wrapping around at the end: sharded weights wait for one another.
        mine = range(start + rank * size, start + (rank + 1) * size)
        x, y = default_collate([source.example(i % count) for i in mine])
        values = loss(x.to(device), y.to(device), generator_for(seed, "held out", mine.start))
        total += values[: max(0, count - mine.start)].double().sum()
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total.item()) / count
