"""What a training step changes, as one dictionary that does not depend on how processes share the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor

from wavemamba.errors import CheckpointError
from wavemamba.training.loss_scale import LossScale
from wavemamba.training.processes import gather, rank
from wavemamba.training.randomness import random_state, restore_random_state
from wavemamba.training.sharded_files import tensors_by_name

PARTS = ("step", "model", "ema", "optimizer", "schedule", "loss_scale", "random")


class TrainState:
    """Model, averaged models, optimiser, schedule, loss scale, step and random states of a run.

    Args:
        model: as the optimiser knows it: plain, or sharded by FSDP2, or inside DDP.
        averages: the averaged copies by name, sharded in the same way.
        optimizer: torch's own object, not a wrapper.
        schedule: of the learning rate.
        loss_scale: of float16.
    """

    def __init__(
        self,
        model: nn.Module,
        averages: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        loss_scale: LossScale,
    ) -> None:
        self.model = model
        self.averages = dict(averages)
        self.optimizer = optimizer
        self.schedule = schedule
        self.loss_scale = loss_scale
        self.step = 0

    @property
    def sharded(self) -> bool:
        """Whether processes hold parts of the model."""
        return any(isinstance(parameter, DTensor) for parameter in self.model.parameters())

    def tensors(self) -> dict[str, Any]:
        """`model`, `ema` and `optimizer`: sharded where the model is, or else whole and on the CPU.

        Every process has to call it.
        """
        options = StateDictOptions(full_state_dict=not self.sharded, cpu_offload=not self.sharded)
        model, optimizer = get_state_dict(self.model, self.optimizer, options=options)
        averages = {name: get_model_state_dict(average, options=options) for name, average in self.averages.items()}
        return {"model": model, "ema": averages, "optimizer": optimizer}

    def collect(self) -> dict[str, Any]:
        """Everything, for `Checkpoints.save`; every process has to call it.

        Returns:
            `step`, `model`, `ema`, `optimizer`, `schedule`, `loss_scale` and `random` (one entry a process).
        """
        return {
            **self.tensors(),
            "step": self.step,
            "schedule": self.schedule.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
            "random": gather(random_state()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `collect` returned; the number of processes and how they share the model may have changed.

        Learning rate, weight decay and the other options of the optimiser stay those that it was built with.

        Raises:
            CheckpointError: the state is not one of this model; nothing is changed.
        """
        self._check(state)
        options = StateDictOptions(full_state_dict=not _has_shards(state))
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        base_rates = list(self.schedule.base_lrs)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=options,
        )
        for name, average in self.averages.items():
            set_model_state_dict(average, self._stored_average(state, name), options=options)
        self.schedule.load_state_dict({**state["schedule"], "base_lrs": base_rates})
        factors = [factor(self.schedule.last_epoch) for factor in self.schedule.lr_lambdas]
        for group, own, rate, factor in zip(self.optimizer.param_groups, chosen, base_rates, factors, strict=True):
            group.update(own, lr=rate * factor)
        self.loss_scale.load_state_dict(state["loss_scale"])
        self.step = int(state["step"])
        if rank() < len(state["random"]):
            restore_random_state(state["random"][rank()])

    def _stored_average(self, state: dict[str, Any], name: str) -> dict[str, Any]:
        """The average of that decay; a decay that is new begins where the first one stands."""
        stored: dict[str, dict[str, Any]] = state["ema"]
        return stored.get(name) or next(iter(stored.values()))

    def _check(self, state: dict[str, Any]) -> None:
        """Compare names and shapes before anything is written."""
        lacking = [part for part in PARTS if part not in state]
        if lacking:
            raise CheckpointError(f"checkpoint: expected {', '.join(PARTS)}, {', '.join(lacking)} is missing")
        averages = {name: self._stored_average(state, name) for name in self.averages}
        stored = {"model": state["model"], "ema": averages, "optimizer": state["optimizer"]}
        expected, found = (
            {name: tuple(tensor.shape) for name, tensor in tensors_by_name(tensors).items()}
            for tensors in (self.tensors(), stored)
        )
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if differing:
            some = "; ".join(f"{n}: expected {expected.get(n)}, got {found.get(n)}" for n in differing[:3])
            raise CheckpointError(
                f"checkpoint: expected one of this model and optimiser, {len(differing)} tensors differ ({some}); "
                "start with the model options that it was made with, or in another folder"
            )

    def averaged_weights(self, name: str) -> dict[str, Any]:
        """An averaged model's state, whole and on the CPU of the first process; every process has to call it."""
        weights: dict[str, Any] = get_model_state_dict(
            self.averages[name], options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        return weights


def _has_shards(state: dict[str, Any]) -> bool:
    return any(isinstance(tensor, DTensor) for tensor in tensors_by_name(state).values())
