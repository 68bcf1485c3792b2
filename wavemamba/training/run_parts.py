"""The parts of a training run, put together once."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from wavemamba.data import (
    ExampleSource,
    Findings,
    Source,
    hold_out,
    slices_of_batch,
    thorough_look,
    without_faults,
)
from wavemamba.diffusion import Objective
from wavemamba.errors import ConfigError
from wavemamba.models import DiffusionModel, TrainedFor
from wavemamba.models.hub import path_of
from wavemamba.seeds import generator_for
from wavemamba.training.averages import Averages
from wavemamba.training.callbacks import EVENTS, Callback
from wavemamba.training.checkpoint_files import Checkpoints
from wavemamba.training.config import TrainConfig
from wavemamba.training.evaluation import sums_dtype
from wavemamba.training.log import RunLog
from wavemamba.training.looking import Look, kept_look, look_together
from wavemamba.training.loss_scale import LossScale
from wavemamba.training.processes import gather, rank
from wavemamba.training.randomness import seed_everything
from wavemamba.training.schedules import LearningRates, learning_rate_factor
from wavemamba.training.state import TrainState

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Batch(NamedTuple):
    """A part of a step's examples, with the times and the noise that were drawn for it."""

    x: Tensor
    """(b, c, h, w), data."""
    y: Tensor | None
    """(b,) int64, classes; None where there is one class only."""
    t: Tensor
    """(b,), times."""
    x0: Tensor
    """(b, c, h, w), noise."""


class RunParts(ABC):
    """What a training run is made of, and how it is put together.

    Args:
        config: what is trained, and how.
        callbacks: told what happens.
    """

    def __init__(self, config: TrainConfig, callbacks: Sequence[Callback]) -> None:
        self.config = config
        self.out = path_of(config.out)
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            lacking = [event for event in EVENTS if not callable(getattr(callback, event, None))]
            if lacking:
                raise ConfigError(
                    f"callbacks: expected all of {', '.join(EVENTS)}, {type(callback).__name__} lacks "
                    f"{', '.join(lacking)}; inherit from wavemamba.training.Callback"
                )
        self.accelerator = _accelerator()
        self.main, self.device = self.accelerator.is_main_process, self.accelerator.device
        self.checkpoints = Checkpoints(self.out / "checkpoints", keep=config.keep)
        self.log = RunLog(self.out, enabled=self.main)
        self._moments: deque[float] = deque(maxlen=20)  # when the last steps ended
        self._built = False

    @abstractmethod
    def build_data(self) -> Source:
        """The source to train on."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model at step 0."""

    @abstractmethod
    def build_objective(self) -> Objective:
        """What the model is trained for."""

    @abstractmethod
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the model."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of every example, (b,)."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Numbers for the log."""

    @abstractmethod
    def export(self, model: nn.Module, folder: Path) -> None:
        """Write an averaged model."""

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.state.step

    @property
    def num_classes(self) -> int:
        """Classes of the data; 0 where there is one class only."""
        return len(self.source.classes) if len(self.source.classes) > 1 else 0

    @property
    def averaged_model(self) -> nn.Module:
        """The averaged weights of the first decay, sharded where the model is; in evaluation mode."""
        return self.averages.first

    @property
    def looked_at(self) -> str:
        """How the examples were looked at before the first step, in words; empty where they were not."""
        look = self._look
        return f"{look.examples:,} examples, {look.findings.how}" if look and look.findings.how else ""

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.state.rates.current

    @property
    def images_per_second(self) -> float:
        """Over the last steps, all processes together; 0 until there are two."""
        seconds = self._moments[-1] - self._moments[0] if len(self._moments) > 1 else 0.0
        return self.config.batch_size * (len(self._moments) - 1) / seconds if seconds else 0.0

    def settings(self) -> dict[str, Any]:
        """What makes this run another run when it changes."""
        own: dict[str, Any] = {"examples": self.examples, "classes": list(self.source.classes)}
        own["fingerprint of the data"] = self._fingerprint
        if self.config.schedule != "constant":
            own["steps"] = self.total_steps
        return {**self.config.settings(), **own}

    def prepare(self) -> None:
        """Build data, model, objective and optimiser; `train` does it where it was not done."""
        if self._built:
            return
        c, accelerator = self.config, self.accelerator
        self._open_data()
        self.examples = self.source.num_examples
        self.total_steps = c.total_steps(self.examples)
        self._share = {"rank": rank(), "processes": accelerator.num_processes, "accumulate": c.accumulate}
        self._slices = slices_of_batch(c.batch_size, **self._share)
        self.objective = self.build_objective()
        seed_everything(c.seed, "weights")
        model = self.build_model().train()  # loaded weights come in evaluation mode
        if isinstance(model, DiffusionModel):
            names = tuple(self.source.classes) if self.num_classes else ()
            model.trained_for = TrainedFor(self.objective.to_dict(), c.autoencoder, names)
        self.averages = Averages(model, c.ema, warmup=c.ema_warmup, device=self.device)
        self._unsharded = copy.deepcopy(model).to("meta") if accelerator.is_fsdp2 else None
        if c.checkpoint_activations:
            set_checkpointing: Any = model.set_grad_checkpointing
            set_checkpointing(True)
        if c.compile:
            model.compile()
        self.model, optimizer = accelerator.prepare(model, self.build_optimizer(model))
        if accelerator.is_fsdp2:
            self.averages.shard(accelerator)
        factor = learning_rate_factor(c.schedule, warmup=c.warmup, steps=self.total_steps)
        rates = LearningRates(optimizer.optimizer, factor)
        scale = LossScale(enabled=c.precision == "fp16")
        whole = accelerator.unwrap_model(self.model)
        self.state = TrainState(whole, self.averages.models, optimizer.optimizer, rates, scale)
        # The sum of the losses and their number since the last line of the log.
        self._losses = torch.zeros(2, dtype=sums_dtype(self.device), device=self.device)
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        self._built = True

    def _open_data(self) -> None:
        """Open the data and look at them; a resumed run whose data are the same does not look again."""
        c, whole = self.config, self.build_data()
        thorough = thorough_look(whole, c.verify_data, c.skip_unreadable)
        self._look: Look | None = None
        if not isinstance(whole, ExampleSource) or thorough is None:
            self._take(whole, Findings())
            return
        kept = gather(kept_look(self.out))[0]
        if kept is not None and self._fits(kept, len(whole), thorough):
            self._take(whole, kept.findings)
            if all(gather(self._fingerprint == kept.fingerprint)):
                self._look = kept
                return
        found = look_together(whole, thorough=thorough)
        self._take(whole, found)
        self._look = Look(self._fingerprint, len(whole), thorough, found)

    def _fits(self, kept: Look, examples: int, thorough: bool) -> bool:
        as_thorough = kept.thorough or not thorough
        return as_thorough and kept.examples == examples and (self.config.skip_unreadable or not kept.findings.faults)

    def _take(self, whole: Source, found: Findings) -> None:
        source = without_faults(whole, found, skip_unreadable=self.config.skip_unreadable)
        self.source, self.held_out = hold_out(source, self.config.holdout, self.config.seed)
        self._fingerprint = self.source.fingerprint()

    def batch(self, x: Tensor, y: Tensor, purpose: str, number: int, part: slice) -> Batch:
        """A part of batch `number`; times and noise are drawn whole: they do not depend on who takes which part."""
        count, generator = self.config.batch_size, generator_for(self.config.seed, purpose, number)
        interval = self.objective.train_interval
        t = self.objective.time_sampling.sample(count, interval, generator=generator, device="cpu")
        x0 = torch.randn(count, *self.source.shape, generator=generator, device="cpu", dtype=torch.float32)
        x, y, t, x0 = (tensor.to(self.device, non_blocking=True) for tensor in (x, y, t[part], x0[part]))
        return Batch(x, y if self.num_classes else None, t, x0)

    def autocast(self) -> torch.autocast:
        """The context in which losses are computed."""
        dtype = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


def _accelerator() -> Accelerator:
    try:
        return Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())
    except ValueError as error:  # another Accelerator of this process was made with other options
        raise ConfigError(f"accelerate: expected no other Accelerator in this process ({error})") from error
