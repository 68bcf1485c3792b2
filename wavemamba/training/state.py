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
from wavemamba.training.schedules import LearningRates
from wavemamba.training.sharded_files import tensors_by_name

PARTS = ("step", "model", "ema", "optimizer", "loss_scale", "random")


class TrainState:
    """Model, averaged models, optimiser, loss scale, step and random states of a run.

    Args:
        model: as the optimiser knows it: plain, or sharded by FSDP2, or inside DDP.
        averages: the averaged copies by name, sharded in the same way.
        optimizer: torch's own object, not a wrapper.
        rates: of the optimiser.
        loss_scale: of float16.
    """

    def __init__(
        self,
        model: nn.Module,
        averages: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        rates: LearningRates,
        loss_scale: LossScale,
    ) -> None:
        self.model = model
        self.averages = dict(averages)
        self.optimizer = optimizer
        self.rates = rates
        self.loss_scale = loss_scale
        self.step = 0

    @property
    def sharded(self) -> bool:
        """Whether processes hold parts of the model."""
        return any(isinstance(parameter, DTensor) for parameter in self.model.parameters())

    def tensors(self) -> dict[str, Any]:
        """`model`, `ema` and `optimizer`: sharded where the model is, or else whole, and on the first process's CPU.

        Every process has to call it.
        """
        options = StateDictOptions(cpu_offload=rank() == 0 and not self.sharded)
        model, optimizer = get_state_dict(self.model, self.optimizer, options=options)
        averages = {name: get_model_state_dict(average, options=options) for name, average in self.averages.items()}
        return {"model": model, "ema": averages, "optimizer": optimizer}

    def collect(self) -> dict[str, Any]:
        """Everything, for `Checkpoints.save`; every process has to call it.

        Returns:
            `step`, `model`, `ema`, `optimizer`, `loss_scale` and `random` (one entry a process).
        """
        return {
            **self.tensors(),
            "step": self.step,
            "loss_scale": self.loss_scale.state_dict(),
            "random": gather(random_state()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `collect` returned; the number of processes and how they share the model may have changed.

        Learning rate, weight decay and the other options of the optimiser stay those that it was built with. A
        parameter that never had a gradient has no state in the checkpoint, and begins with a fresh one.

        Raises:
            CheckpointError: the state is not one of this model; nothing is changed.
        """
        lacking = [part for part in PARTS if part not in state]
        if lacking:
            raise CheckpointError(f"checkpoint: expected {', '.join(PARTS)}, {', '.join(lacking)} is missing")
        own = self.tensors()
        begun, whole = state["optimizer"], not _has_shards(state)
        missing = own["optimizer"]["state"].keys() - begun["state"].keys()
        fresh = {name: own["optimizer"]["state"][name] for name in sorted(missing)}
        optimizer = {**begun, "state": {**begun["state"], **(_unsharded(fresh) if whole else fresh)}}
        averages = {name: state["ema"].get(name) or next(iter(state["ema"].values())) for name in self.averages}
        tensors = {"model": state["model"], "ema": averages, "optimizer": optimizer}
        _check_same_tensors(own, tensors)
        options = StateDictOptions(full_state_dict=whole)
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        try:
            set_state_dict(
                self.model,
                self.optimizer,
                model_state_dict=state["model"],
                optim_state_dict=optimizer,
                options=options,
            )
        except (KeyError, ValueError, RuntimeError, AssertionError) as error:
            raise CheckpointError(
                f"checkpoint: expected one of this optimiser, with the same groups of parameters, got: {error!r}; "
                "build the optimiser as before, or start in another folder"
            ) from error
        for name, average in self.averages.items():
            set_model_state_dict(average, averages[name], options=options)
        for group, options_of_group in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(options_of_group)
        self.loss_scale.load_state_dict(state["loss_scale"])
        self.step = int(state["step"])
        self.rates.set(self.step)
        if rank() < len(state["random"]):
            restore_random_state(state["random"][rank()])

    def averaged_weights(self, name: str) -> dict[str, Any]:
        """An averaged model's state, whole and on the CPU of the first process; every process has to call it."""
        weights: dict[str, Any] = get_model_state_dict(
            self.averages[name], options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        return weights


def _unsharded(state: Any) -> Any:
    if isinstance(state, DTensor):
        return state.full_tensor()
    return {key: _unsharded(value) for key, value in state.items()} if isinstance(state, dict) else state


def _has_shards(state: dict[str, Any]) -> bool:
    return any(isinstance(tensor, DTensor) for tensor in tensors_by_name(state).values())


def _check_same_tensors(own: dict[str, Any], stored: dict[str, Any]) -> None:
    """Compare names and shapes before anything is written."""
    expected, found = (
        {name: tuple(tensor.shape) for name, tensor in tensors_by_name(state).items()} for state in (own, stored)
    )
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        some = "; ".join(f"{n}: expected {expected.get(n)}, got {found.get(n)}" for n in differing[:3])
        raise CheckpointError(
            f"checkpoint: expected one of this model and optimiser, {len(differing)} tensors differ ({some}); "
            "start with the model options that it was made with, or in another folder"
        )
