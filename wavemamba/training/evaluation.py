"""The loss on examples that were kept out of training."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from wavemamba.data import ExampleSource, collate, slices_of_batch

Loss = Callable[[Tensor, Tensor, int, slice], Tensor]
"""`loss(x: (b, c, h, w), y: (b,), batch, part) -> (b,)`: these are examples `part` of batch number `batch`."""


@torch.no_grad()
def held_out_loss(loss: Loss, source: ExampleSource, *, batch_size: int, device: torch.device | str = "cpu") -> float:
    """Mean loss over `source`; all processes take part, and their number does not change what `loss` is asked.

    Args:
        loss: of every example of its share of a batch; draws noise and times for `(batch, part)`.
        source: what was kept out of training, not empty.
        batch_size: over all processes, a multiple of their number.
        device: where `loss` computes.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    (part,) = slices_of_batch(batch_size, rank=rank, processes=processes, accumulate=1)
    count = len(source)
    total = torch.zeros((), dtype=sums_dtype(torch.device(device)), device=device)
    for batch, start in enumerate(range(0, count, batch_size)):
        # Every process runs every batch whole, wrapping around at the end: sharded weights wait for one another.
        mine = range(start + part.start, start + part.stop)
        x, y = collate([source.example(i % count) for i in mine])
        total += loss(x.to(device), y.to(device), batch, part)[: max(0, count - mine.start)].to(total.dtype).sum()
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total.item()) / count


def sums_dtype(device: torch.device) -> torch.dtype:
    """In what sums of losses are kept: float64, or float32 on a device (MPS) that has none."""
    return torch.float32 if device.type == "mps" else torch.float64
