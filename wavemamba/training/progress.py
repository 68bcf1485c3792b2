"""What a run says at its start, while it goes on and at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from wavemamba.files import printable
from wavemamba.training.callbacks import Callback, Outcome

if TYPE_CHECKING:
    from wavemamba.training.trainer import Trainer

MEASURED = 10  # steps after which the time of the rest is estimated


class ProgressBar(Callback):
    """A progress bar with loss, images a second, learning rate and the time left; and what a run begins with.

    Args:
        write: where whole lines go to; they stand above the bar.
    """

    def __init__(self, write: Callable[[str], Any] = tqdm.write) -> None:
        self.write: Callable[[str], Any] = lambda text: write(printable(text))
        self._bar: Any = None
        self._begun = 0
        self._loss = ""

    def on_start(self, trainer: Trainer) -> None:
        """Say what is trained on what, and open the bar."""
        if not trainer.main:
            return
        for line in start_lines(trainer):
            self.write(line)
        self._begun = trainer.step
        self._bar = tqdm(total=trainer.total_steps, initial=trainer.step, unit="step", dynamic_ncols=True)

    def on_step(self, trainer: Trainer) -> None:
        """Move the bar; after the first steps say how long the rest will take."""
        if self._bar is None:
            return
        rate = trainer.images_per_second
        self._bar.set_postfix_str(f"{self._loss}{rate:.3g} images/s, lr {trainer.learning_rate:.2e}", refresh=False)
        self._bar.update()
        left = trainer.total_steps - trainer.step
        if trainer.step - self._begun == MEASURED and left and rate:
            seconds = trainer.config.batch_size / rate
            self.write(f"{seconds:.3g} s a step: {duration(seconds * left)} to go")

    def on_log(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Take over the loss."""
        if "loss" in values:
            self._loss = f"loss {values['loss']:.4f}, "

    def on_evaluate(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Say what was measured."""
        if self._bar is not None:
            self.write(f"step {trainer.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def on_save(self, trainer: Trainer, folder: Path) -> None:
        """Nothing: a bar that moves says enough."""

    def on_end(self, trainer: Trainer, outcome: Outcome) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def start_lines(trainer: Trainer) -> list[str]:
    """What a run begins with: data, model, device, and where it goes on."""
    config, source = trainer.config, trainer.source
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    shape = " x ".join(map(str, source.shape))
    precision = "float32" if config.precision == "no" else config.precision
    lines = [
        f"data: {source.summary()}, {shape}",
        f"model: {config.model}, {parameters:,} parameters, {precision}"
        + (f", from {config.init_from}" if config.init_from else ""),
        f"device: {trainer.accelerator.num_processes} x {trainer.device}",
        f"run: {trainer.out}, "
        + (f"resuming from step {trainer.step}" if trainer.step else "starting")
        + f", {trainer.total_steps} steps of {config.batch_size} examples",
    ]
    if trainer.looked_at:
        lines.insert(1, f"looked at: {trainer.looked_at}")
    lines += [f"adapted: {change}" for change in getattr(trainer.state.model, "adapted", ())]
    if trainer.device.type == "cpu" and config.precision != "no":
        lines.append(f"note: {config.precision} on a CPU is often slower than float32, above all for narrow models")
    return lines


def duration(seconds: float) -> str:
    """A time in words, two units at most."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if days >= 1:
        return f"{int(days)} d {int(hours) % 24} h"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes) % 60} min"
    if minutes >= 1:
        return f"{int(minutes)} min {int(seconds) % 60} s"
    return f"{seconds:.0f} s"
