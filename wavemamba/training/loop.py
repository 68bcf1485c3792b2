"""What every training run does: steps, checkpoints, resumption, stopping."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from wavemamba.data import Batches, Source, hold_out, slices_of_batch
from wavemamba.diffusion import Objective
from wavemamba.errors import WavemambaError
from wavemamba.files import write_atomically
from wavemamba.locks import FolderLock
from wavemamba.seeds import generator_for
from wavemamba.training.averages import Averages
from wavemamba.training.callbacks import Callback, Outcome
from wavemamba.training.checkpoint_files import Checkpoints
from wavemamba.training.config import TrainConfig
from wavemamba.training.log import RunLog
from wavemamba.training.loss_scale import LossScale
from wavemamba.training.processes import gather, rank
from wavemamba.training.randomness import seed_everything
from wavemamba.training.schedules import learning_rate_factor
from wavemamba.training.state import TrainState
from wavemamba.training.stopping import StopSignal, check_same_settings
from wavemamba.training.writing import writing

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


class TrainingLoop(ABC):
    """The part of a `Trainer` that is not meant to be overridden.

    Args:
        config: what is trained, and how.
        callbacks: told what happens.
    """

    def __init__(self, config: TrainConfig, callbacks: Sequence[Callback]) -> None:
        self.config = config
        self.out = Path(config.out)
        self.callbacks = list(callbacks)
        self.accelerator = Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())
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
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.state.schedule.get_last_lr()[0])

    @property
    def images_per_second(self) -> float:
        """Over the last steps, all processes together; 0 until there are two."""
        seconds = self._moments[-1] - self._moments[0] if len(self._moments) > 1 else 0.0
        return self.config.batch_size * (len(self._moments) - 1) / seconds if seconds else 0.0

    def settings(self) -> dict[str, Any]:
        """What makes this run another run when it changes."""
        own: dict[str, Any] = {"examples": self.examples, "classes": list(self.source.classes)}
        own["fingerprint"] = self._fingerprint
        if self.config.schedule != "constant":
            own["steps"] = self.total_steps
        return {**self.config.settings(), **own}

    def prepare(self) -> None:
        """Build data, model, objective and optimiser; `train` does it where it was not done."""
        if self._built:
            return
        c, accelerator = self.config, self.accelerator
        self.source, self.held_out = hold_out(self.build_data(), c.holdout, c.seed)
        self.examples = self.source.num_examples
        self._fingerprint = self.source.fingerprint()
        self.total_steps = c.total_steps(self.examples)
        self._share = {"rank": rank(), "processes": accelerator.num_processes, "accumulate": c.accumulate}
        self._slices = slices_of_batch(c.batch_size, **self._share)
        self.objective = self.build_objective()
        seed_everything(c.seed, "weights")
        model = self.build_model()
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
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, factor)
        scale = LossScale(enabled=c.precision == "fp16")
        whole = accelerator.unwrap_model(self.model)
        self.state = TrainState(whole, self.averages.models, optimizer.optimizer, schedule, scale)
        # The sum of the losses and their number since the last line of the log.
        self._losses = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        self._built = True

    def train(self) -> Outcome:
        """From where the run stands to its end.

        Returns:
            "finished", or "stopped" where a signal asked for it; everything is saved then.

        Raises:
            WavemambaError: something is wrong with settings, data, disk or numbers; what was saved before stays.
        """
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(StopSignal())
            self.prepare()
            with writing(self.out):
                stack.enter_context(FolderLock(self.out, enabled=self.main))
            self._resume()
            outcome: Outcome = "failed"
            try:
                self._tell("on_start")
                outcome = self._steps(stop)
            finally:
                with contextlib.ExitStack() as ends:  # every callback is told, whatever another one raises
                    for callback in reversed(self.callbacks):
                        ends.callback(callback.on_end, self, outcome)  # type: ignore[arg-type]  # self is a Trainer
        return outcome

    def _steps(self, stop: StopSignal) -> Outcome:
        c = self.config
        if self.step >= self.total_steps:
            self._export()  # a kill may have come between the last checkpoint and this
        batches = self._batches()
        while self.step < self.total_steps:
            norm = self._train_step(batches)
            self._moments.append(time.monotonic())
            self._tell("on_step")
            if self._due(c.log_every):
                self._log_line(norm)
            if self._due(c.eval_every) and (values := self.evaluate()):
                self.log.write(self.step, values)
                self._tell("on_evaluate", values)
            stopped = stop.agreed(self.step, self.device)
            if stopped or self._due(c.save_every) or self.step == self.total_steps:
                self.save()
            if stopped and self.step < self.total_steps:
                return "stopped"
        return "finished"

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _tell(self, event: str, *values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *values)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        c = self.config
        return iter(
            Batches(
                self.source,
                seed=c.seed,
                batch_size=c.batch_size,
                start=self.step,
                stop=self.total_steps,
                workers=c.workers,
                pin_memory=self.device.type == "cuda",
                **self._share,
            )
        )

    def batch(self, x: Tensor, y: Tensor, purpose: str, number: int, part: slice) -> Batch:
        """A part of batch `number`; times and noise are drawn whole: they do not depend on who takes which part."""
        count, generator = self.config.batch_size, generator_for(self.config.seed, purpose, number)
        interval = self.objective.train_interval
        t = self.objective.time_sampling.sample(count, interval, generator=generator)
        x0 = torch.randn(count, *self.source.shape, generator=generator, device="cpu", dtype=torch.float32)
        x, y, t, x0 = (tensor.to(self.device, non_blocking=True) for tensor in (x, y, t[part], x0[part]))
        return Batch(x, y if self.num_classes else None, t, x0)

    def autocast(self) -> torch.autocast:
        """The context in which losses are computed."""
        dtype = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _train_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """One optimiser step; all its randomness comes from the seed and the step's number."""
        c, state, accelerator = self.config, self.state, self.accelerator
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in self._slices:
            batch = self.batch(*next(batches), "noise", state.step, part)
            seed_everything(c.seed, "step", state.step, part.start)
            last = part is self._slices[-1]
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                with self.autocast():
                    loss = self.loss(self.model, batch).mean() / c.accumulate
                (loss * state.loss_scale.value if state.loss_scale.enabled else loss).backward()
            total += loss.detach()
        state.loss_scale.unscale(self.model.parameters())
        norm: Any = accelerator.clip_grad_norm_(self.model.parameters(), c.clip or math.inf)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        taken = state.loss_scale.accepts(norm)
        if taken:
            self._finite &= norm.isfinite()
            state.optimizer.step()
            self._losses[0] += total
            self._losses[1] += 1
        state.schedule.step()
        state.optimizer.zero_grad()
        state.step += 1
        if taken:
            self.averages.update(state.model, state.step)
        elif state.loss_scale.exhausted:
            self._finite.fill_(False)
            self._check_finite()
        return torch.as_tensor(norm)

    def _check_finite(self) -> None:
        """Look, where waiting for the device is due anyway, whether every gradient so far was finite."""
        if not self._finite.item():
            raise WavemambaError(
                f"the loss or its gradient became NaN or infinite by step {self.step}; it was not saved, "
                f"{self.checkpoints.last_good()}; start again with accept_changes and a lower lr or clip"
            )

    def _log_line(self, norm: Tensor) -> None:
        self._check_finite()
        total, count = self.accelerator.reduce(self._losses, "mean").tolist()
        self._losses.zero_()
        values = {"loss": total / count} if count else {}
        values |= {"lr": self.learning_rate, "gradient_norm": norm.item()}
        if self.examples is not None:
            values["epoch"] = self.step * self.config.batch_size / self.examples
        if self.state.loss_scale.enabled:
            values |= {"loss_scale": self.state.loss_scale.value, "skipped_steps": self.state.loss_scale.skipped}
        if not math.isfinite(values["gradient_norm"]):
            values.pop("gradient_norm")  # a skipped step; JSON has no word for it
        self.log.write(self.step, values)
        self._tell("on_log", values)

    def _resume(self) -> None:
        """Go on from the last good checkpoint, if there is one."""
        loaded = self.checkpoints.load(self.state.tensors)
        if loaded is not None:
            step, state = loaded
            if not self.config.accept_changes:
                check_same_settings(state.get("settings", {}), self.settings(), str(self.out))
            self.state.restore(state)
            losses = torch.tensor(state["losses"], dtype=torch.float64)
            own = losses[rank()] if len(losses) == self.accelerator.num_processes else losses.mean(0)
            self._losses.copy_(own)
            if self.main:
                with writing(self.out):
                    self.checkpoints.set_aside_after(step)
        self.log.start(self.state.step, self.settings())

    def save(self) -> None:
        """Write a checkpoint of this step and the averaged models, unless something in it is NaN."""
        self._check_finite()
        state = {**self.state.collect(), "losses": gather(self._losses.tolist()), "settings": self.settings()}
        folder = self.checkpoints.save(self.step, state)
        self._export()
        self._tell("on_save", folder)

    def _export(self) -> None:
        """Write model/, and model-ema-DECAY/ for every further decay."""
        for number, (name, model) in enumerate(self.averages.models.items()):
            weights = self.state.averaged_weights(name) if self._unsharded is not None else None
            if self.main:
                if self._unsharded is not None and weights is not None:
                    self._unsharded.load_state_dict(weights, assign=True)
                    model = self._unsharded
                folder = self.out / (f"model-ema-{name}" if number else "model")
                about = {
                    **self.settings(),
                    "autoencoder": self.config.autoencoder,
                    "weights": "ema",
                    "decay": float(name),
                }
                with writing(self.out):
                    self.export(model, folder)
                    folder.mkdir(exist_ok=True)
                    text = json.dumps({**about, "step": self.step}, indent=1)
                    write_atomically(folder / "training.json", text.encode())
        self.accelerator.wait_for_everyone()
