"""Accelerate's trackers: TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wavemamba.errors import BackendUnavailable
from wavemamba.files import writing
from wavemamba.names import choose
from wavemamba.seeds import derive_seed
from wavemamba.training.callbacks import Callback, Outcome
from wavemamba.training.config import TRACKERS

if TYPE_CHECKING:
    from wavemamba.training.trainer import Trainer


class Trackers(Callback):
    """Sends what is logged, with images a second, to accelerate's trackers.

    TensorBoard writes to `tensorboard/` in the run's folder and drops what is taken again after a resumption. Weights &
    Biases goes on with the run of the same folder; its own environment variables say where and whether to send.

    Args:
        names: of the trackers.

    Raises:
        ConfigError: a name is unknown.
        BackendUnavailable: a tracker's package is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        from accelerate.tracking import get_available_trackers

        self.names = [choose("tracker", name, TRACKERS) for name in names]
        there = {str(found) for found in get_available_trackers()}
        for name in self.names:
            if name not in there:
                raise BackendUnavailable(f"trackers: expected {name} to be installed; pip install {name}")
        self._open: list[Any] = []

    def on_start(self, trainer: Trainer) -> None:
        """Open the trackers in the main process."""
        if not trainer.main:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        run = trainer.out.resolve()
        identity = f"{derive_seed('tracked run', str(run)):016x}"
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"logging_dir": str(run), "purge_step": trainer.step + 1},
            "wandb": {"dir": str(run), "id": identity, "name": run.name, "resume": "allow"},
        }
        names = {"tensorboard": "tensorboard", "wandb": "wavemamba"}
        with writing(run):
            for name in self.names:
                tracker = LOGGER_TYPE_TO_CLASS[name](names[name], **options[name])
                tracker.start()
                self._open.append(tracker)
                if name == "wandb":  # TensorBoard would get a folder of its own for each start
                    tracker.store_init_configuration(_plain(trainer.settings()))

    def on_log(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Send the values, and how fast the run is."""
        self._log(trainer, {**values, "images_per_second": trainer.images_per_second})

    def on_evaluate(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Send the values."""
        self._log(trainer, values)

    def _log(self, trainer: Trainer, values: dict[str, float]) -> None:
        for tracker in self._open:
            with writing(trainer.out):
                tracker.log(values, step=trainer.step)

    def picture(self, step: int, picture: Image.Image) -> None:
        """Send a grid of samples."""
        for tracker in self._open:
            more = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": np.asarray(picture)[None]}, step=step, **more)

    def on_end(self, trainer: Trainer, outcome: Outcome) -> None:
        """Close the trackers."""
        while self._open:
            self._open.pop().finish()


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as the trackers take them: numbers and words."""
    return {
        name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
        for name, value in settings.items()
    }
