"""What every training run does: steps, checkpoints, resumption, stopping."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from wavemamba.data import Batches
from wavemamba.errors import ShapeError, WavemambaError
from wavemamba.files import write_atomically, writing
from wavemamba.locks import FolderLock
from wavemamba.training.callbacks import Outcome
from wavemamba.training.evaluation import sums_dtype
from wavemamba.training.looking import keep_look
from wavemamba.training.processes import gather, rank
from wavemamba.training.randomness import seed_everything
from wavemamba.training.run_parts import RunParts
from wavemamba.training.stopping import StopSignal, check_same_settings


class TrainingLoop(RunParts):
    """The part of a `Trainer` that is not meant to be overridden."""

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
            if self.main and self._look is not None:
                keep_look(self.out, self._look)
            outcome: Outcome = "failed"
            try:
                self._tell("on_start")
                outcome = self._steps(stop)
            finally:
                self._end(outcome)
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

    def _end(self, outcome: Outcome) -> None:
        """Tell every callback, whatever another one raises; the run's own error is the one that goes on."""
        with contextlib.ExitStack() as ends:
            if outcome == "failed":
                ends.enter_context(contextlib.suppress(Exception))
            for callback in reversed(self.callbacks):
                ends.callback(callback.on_end, self, outcome)  # type: ignore[arg-type]  # self is a Trainer

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

    def _train_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """One optimiser step; all its randomness comes from the seed and the step's number."""
        c, state, accelerator = self.config, self.state, self.accelerator
        total = torch.zeros((), dtype=sums_dtype(self.device), device=self.device)
        for part in self._slices:
            batch = self.batch(*next(batches), "noise", state.step, part)
            seed_everything(c.seed, "step", state.step, part.start)
            last = part is self._slices[-1]
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                with self.autocast():
                    losses = self.loss(self.model, batch)
                    if not isinstance(losses, Tensor) or losses.shape != (len(batch.x),):
                        found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
                        raise ShapeError(f"loss: expected one number an example, ({len(batch.x)},), got {found}")
                    loss = losses.mean() / c.accumulate
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
        state.optimizer.zero_grad()
        state.step += 1
        state.rates.set(state.step)
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
