"""What a training step changes, as one dictionary that does not depend on how processes share the model."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from wavemamba.training.randomness import random_state, restore_random_state


class TrainState:
    """Model, averaged model, optimiser, schedule, step and random states of a run.

    Args:
        model: as the optimiser knows it: plain, or sharded by FSDP2, or inside DDP.
        ema: the averaged copy, sharded in the same way.
        optimizer: torch's own object, not a wrapper.
        schedule: of the learning rate.
    """

    def __init__(
        self,
        model: nn.Module,
        ema: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
    ) -> None:
        self.model = model
        self.ema = ema
        self.optimizer = optimizer
        self.schedule = schedule
        self.step = 0

    def collect(self) -> dict[str, Any]:
        """Everything, whole and on the CPU, for `Checkpoints.save`; every process has to call it.

        Returns:
            `step`, `model`, `ema`, `optimizer`, `schedule` and `random` (one entry a process).
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = get_state_dict(self.model, self.optimizer, options=options)
        return {
            "step": self.step,
            "model": model,
            "ema": get_model_state_dict(self.ema, options=options),
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "random": _gather(random_state()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `collect` returned; the number of processes and how they share the model may have changed.

        Learning rate, weight decay and the other options of the optimiser stay those that it was built with.
        """
        options = StateDictOptions(full_state_dict=True)
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        base_rates = list(self.schedule.base_lrs)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=options,
        )
        set_model_state_dict(self.ema, state["ema"], options=options)
        self.schedule.load_state_dict({**state["schedule"], "base_lrs": base_rates})
        factors = [factor(self.schedule.last_epoch) for factor in self.schedule.lr_lambdas]
        for group, own, rate, factor in zip(self.optimizer.param_groups, chosen, base_rates, factors, strict=True):
            group.update(own, lr=rate * factor)
        self.step = int(state["step"])
        rank = dist.get_rank() if dist.is_initialized() else 0
        if rank < len(state["random"]):
            restore_random_state(state["random"][rank])

    def averaged_weights(self) -> dict[str, Any]:
        """The averaged model's state, whole and on the CPU; every process has to call it."""
        weights: dict[str, Any] = get_model_state_dict(
            self.ema, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        return weights


def _gather(own: dict[str, Any]) -> list[Any]:
    if not dist.is_initialized():
        return [own]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone
