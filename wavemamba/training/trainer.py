"""The trainer: what a run is made of, each part open to be replaced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm import optim
from torch import Tensor, nn

from wavemamba.data import Source, open_source
from wavemamba.diffusion import Objective
from wavemamba.errors import ConfigError
from wavemamba.models import create_model
from wavemamba.training.callbacks import Callback
from wavemamba.training.config import TrainConfig
from wavemamba.training.evaluation import held_out_loss
from wavemamba.training.loop import TrainingLoop
from wavemamba.training.progress import ProgressBar
from wavemamba.training.run_parts import Batch
from wavemamba.training.sample_grids import SampleGrids
from wavemamba.training.trackers import Trackers


class Trainer(TrainingLoop):
    """Trains one model: `Trainer(config).train()`, and the same again after a kill.

    A subclass may override each method of this class; a callback sees what happens. All randomness is a function of the
    seed and of the step's number: a resumed run ends with the bits of an unbroken one. The global random generators are
    seeded anew in every step.

    Args:
        config: what is trained, and how.
        data: an own source; None: what `config.data` names.
        callbacks: told before the trainer's own: progress bar, sample grids, trackers.
    """

    def __init__(self, config: TrainConfig, *, data: Source | None = None, callbacks: Sequence[Callback] = ()) -> None:
        if not isinstance(config, TrainConfig):
            raise ConfigError(f"config: expected a TrainConfig, got {config!r}; TrainConfig.from_dict makes one")
        trackers = Trackers(config.trackers)
        grids = SampleGrids(
            config.sample_every,
            guidance=config.sample_guidance,
            steps=config.sample_steps,
            autoencoder=config.autoencoder,
            trackers=trackers,
        )
        progress = () if config.quiet else (ProgressBar(),)
        super().__init__(config, [*callbacks, *progress, grids, trackers])
        self.data = data

    def prepare(self) -> None:
        """Build everything, and look whether there is something to evaluate on."""
        super().prepare()
        own = type(self).evaluate is not Trainer.evaluate
        if self.config.eval_every and self.held_out is None and not own:
            raise ConfigError(
                f"eval_every: expected 0 without held-out data, got {self.config.eval_every}; set holdout to a "
                "fraction such as 0.01, or override evaluate"
            )

    def build_data(self) -> Source:
        """The source to train on; what cannot be read of it is looked for afterwards."""
        c = self.config
        if self.data is not None:
            return self.data
        if not c.data:
            raise ConfigError("data: expected a name or a folder, or Trainer(config, data=source), got neither")
        given = {"size": c.image_size, "channels": c.channels, "mirror": c.mirror}
        return open_source(c.data, **{**given, **c.data_options})

    def build_model(self) -> nn.Module:
        """The model at step 0: image size, channels and classes are those of the data unless the config says otherwise.

        Called with seeded generators. What it returns is called as `model(x, t, y)`, or `model(x, t)` for one class.
        """
        c, (channels, *size) = self.config, self.source.shape
        given: dict[str, Any] = {"img_size": tuple(size), "in_chans": channels, "num_classes": self.num_classes}
        start = None if self.checkpoints.steps() else c.init_from
        return create_model(c.model, checkpoint_path=start, **{**given, **c.model_options})

    def build_objective(self) -> Objective:
        """The path, what the model predicts, and how the loss is weighted."""
        c = self.config
        return Objective(c.path, c.prediction, c.weighting, time_sampling=c.time_sampling)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW, in one kernel where it has one; its learning rate is multiplied with the schedule's factor."""
        spared: set[str] = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
        grouped: Any = optim.param_groups_weight_decay  # type: ignore[attr-defined]  # timm marks no exports
        groups = grouped(model, self.config.weight_decay, spared)
        fused = True if self.device.type in ("cpu", "cuda") and not self.accelerator.is_fsdp2 else None
        return torch.optim.AdamW(groups, lr=self.config.lr, fused=fused)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of every example, (b,); `model` is the one that is trained, or an averaged one."""
        return self.objective.loss(model, batch.x, t=batch.t, x0=batch.x0, y=batch.y)

    def evaluate(self) -> dict[str, float]:
        """Numbers for the log, every `eval_every` steps: the averaged weights' loss on what was held out."""
        if self.held_out is None:
            return {}

        def loss(x: Tensor, y: Tensor, number: int, part: slice) -> Tensor:
            with self.autocast():
                return self.loss(self.averaged_model, self.batch(x, y, "held out", number, part))

        held_out, size = self.held_out, self.config.batch_size
        return {"held_out_loss": held_out_loss(loss, held_out, batch_size=size, device=self.device)}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write an averaged model to `folder`; called in the main process, at every save."""
        save: Any = model.save_pretrained
        save(folder)
