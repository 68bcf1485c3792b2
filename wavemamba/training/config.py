"""What a training run is: one frozen configuration that checks itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wavemamba.data import LOOKS
from wavemamba.diffusion import PATHS, PREDICTIONS, TIME_SAMPLINGS, WEIGHTINGS
from wavemamba.errors import ConfigError
from wavemamba.names import check_names
from wavemamba.training.options import check_options, option, options_of
from wavemamba.training.schedules import LR_SCHEDULES

PRECISIONS = ("no", "bf16", "fp16")
TRACKERS = ("tensorboard", "wandb")

_DATA, _MODEL, _OBJECTIVE = "data", "model", "objective"
_OPTIMISATION, _OUTPUT = "optimisation (AdamW)", "output"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that moves a training run.

    Each field's metadata holds an `Option`: help, range, and whether a resumed run may change it. The commands' flags,
    recipes and the checks here are made from it.

    Raises:
        ConfigError: a value of the wrong kind or out of range, or values that exclude each other.
    """

    data: str = option("", "'digits', a folder of images (class = sub-folder) or of latent shards, or KIND:WHAT", _DATA)
    image_size: int | None = option(None, "side that images are scaled and cropped to (256)", _DATA, int, least=1)
    channels: int | None = option(None, "1: grey, 3: RGB images (3)", _DATA, int, least=1)
    mirror: bool = option(False, "mirror every example left to right half of the time", _DATA)
    holdout: float = option(0.0, "fraction kept out of training for eval_every", _DATA, least=0, below=1)
    workers: int = option(0, "processes that load data, per training process", _DATA, least=0, change="always")
    verify_data: str = option(
        "auto",
        "look at the data first; all: every image, all checksums",
        _DATA,
        choices=LOOKS,
        change="always",
    )
    skip_unreadable: bool = option(False, "go on without images that cannot be read", _DATA)
    data_options: dict[str, Any] = option({}, "what else a kind of data takes, such as labels=none", _DATA)

    model: str = option("dimsum_tiny", "a name of wavemamba.list_models()", _MODEL)
    model_options: dict[str, Any] = option({}, "model options, such as depth=4", _MODEL, flag="set")
    init_from: str | None = option(None, "start from these saved or released weights (fine-tuning)", _MODEL, str)

    path: str = option("gvp", "from noise to data", _OBJECTIVE, choices=PATHS)
    prediction: str = option("velocity", "what the model predicts", _OBJECTIVE, choices=PREDICTIONS)
    weighting: str = option("none", "weight of the loss", _OBJECTIVE, choices=WEIGHTINGS)
    time_sampling: str = option("uniform", "training times", _OBJECTIVE, choices=TIME_SAMPLINGS)

    steps: int = option(10_000, "optimiser steps in all", _OPTIMISATION, least=1, change="constant schedule")
    epochs: float | None = option(
        None, "instead of steps: passes over the data", _OPTIMISATION, float, least=0, above=True, change="always"
    )
    batch_size: int = option(128, "examples a step, over all processes", _OPTIMISATION, least=1)
    accumulate: int = option(1, "micro-batches that a step is split into", _OPTIMISATION, least=1, change="always")
    lr: float = option(1e-4, "learning rate after warm-up", _OPTIMISATION, least=0)
    weight_decay: float = option(0.0, "not applied to biases, norms, A_log, D", _OPTIMISATION, least=0)
    schedule: str = option("constant", "of the learning rate", _OPTIMISATION, choices=LR_SCHEDULES)
    warmup: int = option(0, "steps over which the learning rate rises", _OPTIMISATION, least=0)
    clip: float = option(2.0, "largest norm of the gradient; 0: no clipping", _OPTIMISATION, least=0)
    ema: tuple[float, ...] = option(
        (0.9999,), "decays of the averaged weights; the first gives model/", _OPTIMISATION, least=0, below=1, many=True
    )
    ema_warmup: bool = option(True, "lower decay at first: 1 - (1 + step) ** (-2/3)", _OPTIMISATION)
    seed: int = option(0, "of weights, order, noise, times, dropout", _OPTIMISATION)
    precision: str = option("no", "bf16: autocast; fp16: autocast with loss scaling", _OPTIMISATION, choices=PRECISIONS)
    compile: bool = option(False, "torch.compile the model", _OPTIMISATION, change="always")
    checkpoint_activations: bool = option(
        False, "recompute activations: less memory, slower", _OPTIMISATION, change="always"
    )

    out: str = option("", "folder of the run", _OUTPUT, change="always")
    save_every: int = option(1000, "steps between checkpoints (0: at the end)", _OUTPUT, least=0, change="always")
    keep: int = option(2, "checkpoints to keep", _OUTPUT, least=1, change="always")
    log_every: int = option(50, "steps between lines of log.jsonl (0: none)", _OUTPUT, least=0, change="always")
    eval_every: int = option(0, "steps between held-out losses (0: never)", _OUTPUT, least=0, change="always")
    sample_every: int = option(0, "steps between sample grids (0: at the end)", _OUTPUT, least=0, change="always")
    sample_guidance: float = option(1.5, "guidance scale of the sample grids", _OUTPUT, least=0, change="always")
    sample_steps: int = option(25, "Heun steps of the sample grids", _OUTPUT, least=1, change="always")
    autoencoder: str | None = option(
        None, "folder or hub id that decodes latents for the sample grids", _OUTPUT, str, change="always"
    )
    trackers: tuple[str, ...] = option(
        (), "also log to these, by accelerate", _OUTPUT, str, choices=TRACKERS, many=True, change="always"
    )
    accept_changes: bool = option(
        False, "go on although settings or data differ from the checkpoint's", _OUTPUT, change="always"
    )
    quiet: bool = option(False, "no progress bar", _OUTPUT, change="always")

    def __post_init__(self) -> None:
        check_options(self)
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"channels: expected 1 (grey) or 3 (RGB), got {self.channels}")
        if not self.out:
            raise ConfigError("out: expected the folder of the run, got none; pass out='runs/mine'")
        if not self.ema or len(set(self.ema)) < len(self.ema):
            raise ConfigError(f"ema: expected one or more different decays, got {self.ema}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Make a configuration from plain values, as `to_dict` gives them.

        Raises:
            ConfigError: a name that is no field, with the nearest one; or a value that is refused.
        """
        check_names(list(values), list(options_of(cls)), "training option")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def settings(self) -> dict[str, Any]:
        """The fields that make a run another run when they change."""
        kept = {"never"} | ({"constant schedule"} if self.schedule != "constant" else set())
        values = {name: value for name, value in self.to_dict().items() if options_of(self)[name].change in kept}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def total_steps(self, examples: int | None) -> int:
        """Length of the run over `examples`; None: their number is not known.

        Raises:
            ConfigError: epochs are asked for, of data whose number is not known.
        """
        if self.epochs is None:
            return self.steps
        if examples is None:
            raise ConfigError(f"epochs: expected steps for data of unknown length, got epochs={self.epochs}")
        return math.ceil(self.epochs * examples / self.batch_size)
