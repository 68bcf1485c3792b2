"""Pictures of what the averaged weights draw, while they are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from wavemamba.diffusion import Autoencoder, ClassifierFreeGuidance, sample_noise, sample_ode
from wavemamba.errors import ConfigError
from wavemamba.files import writing
from wavemamba.sampling.grids import image_grid
from wavemamba.training.callbacks import Callback, Outcome
from wavemamba.training.trackers import Trackers

if TYPE_CHECKING:
    from wavemamba.training.trainer import Trainer


class SampleGrids(Callback):
    """Eight samples of up to ten classes by the averaged weights, the same noise every time, in `samples/`.

    Args:
        every: steps between grids; 0: at the end alone.
        guidance: scale of classifier-free guidance.
        steps: of Heun's solver.
        autoencoder: folder or hub id of what decodes latents; loaded before the first step.
        trackers: also get the grids.
    """

    def __init__(
        self,
        every: int = 0,
        *,
        guidance: float = 1.5,
        steps: int = 25,
        autoencoder: str | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.every = every
        self.guidance = guidance
        self.steps = steps
        self.autoencoder = autoencoder
        self.trackers = trackers
        self._decoder: Autoencoder | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Load the autoencoder now, rather than in the middle of the run."""
        if self.autoencoder and trainer.main:
            self._decoder = Autoencoder.from_pretrained(self.autoencoder, device=trainer.device)
            channels = trainer.source.shape[0]
            if self._decoder.latent_channels != channels:
                raise ConfigError(
                    f"autoencoder: expected one of latents with {channels} channels, as the data have, got "
                    f"{self._decoder.latent_channels}; leave it out for data that are no latents"
                )

    def on_step(self, trainer: Trainer) -> None:
        """Draw where a grid is due."""
        if self.every and trainer.step % self.every == 0 and trainer.step < trainer.total_steps:
            self.draw(trainer)

    def on_end(self, trainer: Trainer, outcome: Outcome) -> None:
        """Draw the last one."""
        if outcome == "finished":
            self.draw(trainer)

    def draw(self, trainer: Trainer) -> None:
        """Draw a grid; every process takes part, the main one decodes and writes."""
        names = trainer.source.classes[:10]
        labels = torch.arange(len(names), device=trainer.device).repeat_interleave(8)
        noise = sample_noise((len(labels), *trainer.source.shape), seeds=range(len(labels)), device=trainer.device)
        model: Any = trainer.averaged_model
        if len(names) > 1 and getattr(model, "null_class", None) is not None:
            model = ClassifierFreeGuidance(model, self.guidance)
        known = labels if len(names) > 1 else None
        images = sample_ode(model, noise, trainer.objective, solver="heun", steps=self.steps, y=known)
        if not trainer.main:
            return
        if self._decoder is not None:
            images = torch.cat([self._decoder.decode(some) for some in images.split(8)])
        picture = image_grid(images, 8, row_labels=names, tile=32)
        path = trainer.out / "samples" / f"step-{trainer.step:08d}.png"
        with writing(trainer.out):
            path.parent.mkdir(exist_ok=True)
            picture.save(path, optimize=True)
        if self.trackers is not None:
            self.trackers.picture(trainer.step, picture)
