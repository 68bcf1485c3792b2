"""A model with everything that it takes to draw pictures from it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from wavemamba.checks import expect_count
from wavemamba.diffusion import Autoencoder, ClassifierFreeGuidance, Conditions, Objective, Progress, sample_noise
from wavemamba.diffusion.calls import evaluating
from wavemamba.diffusion.report import OnStep
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.models import DiffusionModel, TrainedFor, load_pretrained
from wavemamba.names import check_names
from wavemamba.sampling.classes import Classes, class_ids, paired
from wavemamba.sampling.model_modules import described
from wavemamba.sampling.pictures import Pictures
from wavemamba.sampling.precision import Precision, choose_precision, computing_in, converted, is_auto, named_dtype
from wavemamba.sampling.progress import progress_bar
from wavemamba.sampling.record import machine, plain_conditions, plain_objective, weights_digest
from wavemamba.sampling.settings import Settings

DECODED_AT_ONCE = 8


class Sampler:
    """Draws pictures from a diffusion model.

        sampler = Sampler.from_pretrained("runs/digits/model")
        pictures = sampler(classes=[3, 8], seeds=[0, 1], guidance=1.5, solver="heun", steps=25)
        pictures.grid().save("digits.png")

    A picture depends on its own seed and class alone, not on the others that are drawn with it, up to the rounding of
    the model. The model is in evaluation mode while it is sampled, and afterwards as it was.

    Args:
        model: a diffusion model, see `wavemamba.models.DiffusionModel` for what is read of it; also one that DDP,
            `torch.compile` or another module holds.
        objective: path and prediction that it was trained for; None: what `model.trained_for` says.
        autoencoder: decodes latents: an `Autoencoder`, a folder or a hub id; None: what `model.trained_for` says.
        dtype: what the model computes in while it is sampled: a dtype or its name; "auto": bfloat16 where that is
            faster, else float32; None: its own. Solvers keep their state in float32 at least. Where it is not the
            model's own, the model has its weights in this dtype until the pictures are drawn.
        source: where the model comes from, for the record.
        revision: of the source, for the record.

    Raises:
        ConfigError: nobody says what the model was trained for, the autoencoder has latents of other channels, or there
            is no such dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective | None = None,
        *,
        autoencoder: Autoencoder | str | os.PathLike[str] | None = None,
        dtype: torch.dtype | str | None = None,
        source: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.described = described(model)
        trained_for: TrainedFor = getattr(self.described, "trained_for", TrainedFor())
        if objective is None:
            if trained_for.objective is None:
                raise ConfigError(
                    f"objective: expected one, as {source or type(model).__name__} does not say what it was trained "
                    "for; pass objective=Objective(path, prediction)"
                )
            objective = Objective.from_dict(trained_for.objective)
        if not isinstance(objective, Objective):
            raise ConfigError(f"objective: expected an Objective(path, prediction), got {objective!r}")
        first, last = getattr(self.described, "time_range", (0.0, 1.0))
        if not first <= objective.sample_interval.start < objective.sample_interval.end <= last:
            raise ConfigError(
                f"objective: expected times within the model's {first, last}, got {tuple(objective.sample_interval)}"
            )
        self.model, self.objective, self.source, self.revision = model, objective, source, revision
        self.class_names = trained_for.class_names or tuple(map(str, range(self.described.num_classes)))
        chosen = trained_for.autoencoder if autoencoder is None else autoencoder
        self.autoencoder_source = None if isinstance(chosen, Autoencoder) or chosen is None else str(chosen)
        if chosen is not None and not isinstance(chosen, Autoencoder):
            chosen = Autoencoder.from_pretrained(os.fspath(chosen), device=self.device)
        if chosen is not None and chosen.latent_channels != self.described.in_chans:
            raise ConfigError(
                f"autoencoder: expected latents of {self.described.in_chans} channels, as the model has, got "
                f"{chosen.latent_channels}; pass the autoencoder that the model was trained with"
            )
        self.autoencoder = chosen
        self.wanted_dtype = dtype
        _ = self.precision  # an unknown name is told now

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        autoencoder: Autoencoder | str | os.PathLike[str] | None = None,
        revision: str | None = None,
        objective: Objective | None = None,
        **parts: Callable[..., nn.Module],
    ) -> Sampler:
        """A sampler of a saved model of any family.

        Args:
            folder_or_hub_id: what `save_pretrained` wrote, or a repository on the Hugging Face hub.
            device: where to sample; None: the CPU.
            dtype: of the model, or its name; "auto": bfloat16 where that is faster, else float32; None: as it was
                saved. Solvers keep their state in float32 at least.
            autoencoder: see `Sampler`.
            revision: commit, tag or branch of the hub's repository; a commit's hash pins what is loaded.
            objective: see `Sampler`.
            **parts: what the folder says that the model needs, for example `make_block`.

        Raises:
            CheckpointError: a file is missing or damaged.
            ConfigError: see `Sampler`.
        """
        given = None if dtype is None or is_auto(dtype) else named_dtype(dtype)
        model = load_pretrained(folder_or_hub_id, dtype=given, device=device, revision=revision, **parts)
        if not isinstance(model, DiffusionModel):
            raise ConfigError(
                f"{os.fspath(folder_or_hub_id)}: expected a diffusion model, got the family {model.family!r}"
            )
        source = os.fspath(folder_or_hub_id)
        sampler = cls(model, objective, autoencoder=autoencoder, dtype=dtype, source=source, revision=revision)
        if dtype is not None:
            model.to(sampler.dtype)  # for good, as nobody else has it
        return sampler

    @property
    def device(self) -> torch.device:
        """Where the model is, and so where its input goes."""
        return next((p.device for p in self.model.parameters() if not p.is_meta), torch.device("cpu"))

    @property
    def precision(self) -> Precision:
        """The dtype that the model computes in, and why."""
        return choose_precision(self.wanted_dtype, self.model, self.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        return self.precision.dtype

    def latent_shape(self, size: int | tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(C, h, w) of what the model draws for pictures of `size`, (H, W) in pixels; None: the model's own size.

        Raises:
            ConfigError: the size is no whole number of pixels.
            ShapeError: it is not divisible by the autoencoder's downsampling.
        """
        if size is None:
            return (self.described.in_chans, *self.described.img_size)
        pair = size if isinstance(size, Sequence) else (size, size)
        if len(pair) != 2:
            raise ConfigError(f"size: expected a side or (height, width), got {size!r}")
        height, width = (expect_count("size", side, 1) for side in pair)
        if self.autoencoder is not None:
            return self.autoencoder.latent_shape(height, width)
        return self.described.in_chans, height, width

    def noise(self, seeds: Sequence[int], size: int | tuple[int, int] | None = None) -> Tensor:
        """Where the samples of these seeds start: (n, C, h, w)."""
        wide = accumulation_dtype(self.dtype)
        return sample_noise((len(seeds), *self.latent_shape(size)), seeds=seeds, device=self.device, dtype=wide)

    def class_ids(self, classes: Classes | None) -> list[int]:
        """Ids of classes that are given by name or id.

        Raises:
            ConfigError: there is no such class.
        """
        return class_ids(classes, self.class_names, self.described.num_classes, self.described.null_class)

    @torch.no_grad()
    def __call__(
        self,
        classes: Classes | None = None,
        seeds: Sequence[int] | int | None = None,
        *,
        size: int | tuple[int, int] | None = None,
        settings: Settings | None = None,
        conditions: Conditions | None = None,
        batch_size: int = 32,
        progress: bool = True,
        decode: bool = True,
        callback: OnStep | None = None,
        **changes: Any,
    ) -> Pictures:
        """Draw pictures.

        Args:
            classes: ids or names, one a picture; one alone is that of all pictures. None where the model knows no
                classes.
            seeds: one a picture; None: 0, 1, 2, ... for the classes.
            size: side, or (height, width), of the pictures in pixels; None: what the model was made for.
            settings: how to sample; None: the defaults of `Settings`.
            conditions: further named conditions of the model; of tensors with a first axis of all pictures, each
                picture gets its own row.
            batch_size: pictures at once; does not change them.
            progress: show a bar on a terminal, where tqdm is installed.
            decode: latents to pixels, where there is an autoencoder.
            callback: called with a `Progress` after every step of every batch.
            **changes: fields of `Settings`: `guidance=1.5, solver="heun", steps=25`.

        Raises:
            ConfigError: an unknown class or option, or not one seed for each class.
            SolverError: the solver cannot go on, or its result is not finite.
        """
        check_names(changes, [field.name for field in dataclasses.fields(Settings)], "option of a sampler")
        how = dataclasses.replace(settings or Settings(), **changes)
        ids, numbers = self._pairs(classes, seeds)
        many = 1 if how.alone else expect_count("batch_size", batch_size, 1)
        precision = self.precision
        call, scale = self._guided(how, bool(ids), precision.dtype)
        drawn, evaluations = [], 0
        with (
            evaluating(self.model),
            converted(self.model, precision.dtype),
            progress_bar(len(numbers), progress, str(precision) if precision.chosen_here else None) as show,
        ):
            for start in range(0, len(numbers), many):
                part = numbers[start : start + many]
                y = torch.tensor(ids[start : start + many], device=self.device) if ids else None
                noise = self.noise(part, size)
                further = {
                    name: value[start : start + many].to(self.device) if _by_row(value, len(numbers)) else value
                    for name, value in (conditions or {}).items()
                }

                def step(at: Progress, start: int = start, count: int = len(part)) -> None:
                    show(start + count * min(1.0, at.time))
                    if callback is not None:
                        callback(at)

                sample, info = how.draw(call, noise, self.objective, y, further, part, step)
                drawn.append(self._decoded(sample) if decode else sample.float().cpu())
                evaluations += info.nfe
        images = torch.cat(drawn)
        names = tuple(self.class_names[i] if i < len(self.class_names) else "any" for i in ids)
        record = {
            "model": self.source or type(self.described).__name__,
            "revision": self.revision,
            "family": getattr(self.described, "family", type(self.described).__name__),
            "weights_sha256": weights_digest(self.model),
            "objective": plain_objective(self.objective),
            "autoencoder": self.autoencoder_source if decode else None,
            "settings": how.to_dict(scale),
            "seeds": numbers,
            "classes": ids or None,
            "class_names": list(names),
            "conditions": plain_conditions(conditions),
            "size": list(images.shape[2:]),
            "dtype": precision.name,
            "dtype_reason": precision.reason,
            "evaluations": evaluations,
            **machine(self.device),
        }
        return Pictures(images, names, record)

    def _pairs(self, classes: Classes | None, seeds: Sequence[int] | int | None) -> tuple[list[int], list[int]]:
        if (classes is None) == bool(self.described.num_classes):
            wanted = f"names or ids of {self.described.num_classes} classes" if classes is None else "None"
            known = "" if classes is None else ", as the model knows no classes"
            raise ConfigError(f"classes: expected {wanted}{known}, got {classes!r}")
        return paired(self.class_ids(classes), seeds)

    def _guided(self, how: Settings, labelled: bool, dtype: torch.dtype) -> tuple[Any, float]:
        able = labelled and self.described.null_class is not None
        scale = (1.5 if able else 1.0) if how.guidance is None else float(how.guidance)
        model = computing_in(self.model, dtype)
        if scale == 1:
            return model, 1.0
        if not labelled:
            raise ConfigError(f"guidance: expected 1 or None, as the model knows no classes, got {how.guidance}")
        return (
            ClassifierFreeGuidance(
                model,
                scale,
                interval=how.guidance_interval,
                schedule=how.guidance_schedule,
                power=how.guidance_power,
            ),
            scale,
        )

    def _decoded(self, sample: Tensor) -> Tensor:
        if self.autoencoder is None:
            return sample.float().cpu()
        return torch.cat([self.autoencoder.decode(some).float().cpu() for some in sample.split(DECODED_AT_ONCE)])


def _by_row(value: object, count: int) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
