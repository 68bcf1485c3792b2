"""What happens beside the training: a small protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from wavemamba.training.trainer import Trainer

Outcome = Literal["finished", "stopped", "failed"]


EVENTS = ("on_start", "on_step", "on_log", "on_evaluate", "on_save", "on_end")


class Callback(Protocol):
    """Told by a `Trainer` what happens, in every process, in the order of the trainer's `callbacks`.

    Each method may do nothing: a class that inherits from this one needs only those that it uses. What a callback
    raises ends the run. With FSDP2 every process has to take part in whatever uses a model's weights.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Everything is built, a checkpoint is restored where there was one; the first step comes next."""
        return

    def on_step(self, trainer: Trainer) -> None:
        """A step was taken: `trainer.step` of `trainer.total_steps`."""
        return

    def on_log(self, trainer: Trainer, values: dict[str, float]) -> None:
        """A line went to `log.jsonl`."""
        return

    def on_evaluate(self, trainer: Trainer, values: dict[str, float]) -> None:
        """`trainer.evaluate` was called and its values were logged."""
        return

    def on_save(self, trainer: Trainer, folder: Path) -> None:
        """A checkpoint was written, and the models exported."""
        return

    def on_end(self, trainer: Trainer, outcome: Outcome) -> None:
        """The run is over; after "failed" the error goes on its way."""
