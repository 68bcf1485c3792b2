"""The contract that sampler, trainer, saving and timm read: what a model is, and what a diffusion model is."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from wavemamba.errors import ConfigError
from wavemamba.layers.weight_decay import undecayed_names
from wavemamba.models import saving
from wavemamba.models.config import DiffusionConfig, ModelConfig
from wavemamba.models.description import Condition, TrainedFor
from wavemamba.models.features import capture_blocks
from wavemamba.models.record import describe

if TYPE_CHECKING:
    from typing_extensions import Self


class Model(nn.Module):
    """A model made from one configuration: it has a family, and is saved and loaded.

    A subclass names its `family` and its `config_class`, and takes such a configuration, and the parts that it names in
    `parts`, as keywords.

    Args:
        config: what the model is made of.
        **parts: what was passed for the names in `parts`.
    """

    family: ClassVar[str]
    """What `config.json` calls the family."""
    config_class: ClassVar[type[ModelConfig]]
    """The family's configuration."""
    parts: ClassVar[tuple[str, ...]] = ()
    """Keywords beside the configuration: functions that make parts of the model."""
    first_conv: ClassVar[str | None] = None
    """The layer that reads the image, for timm."""
    classifier: ClassVar[str | None] = None
    """The layer that knows the classes, for timm."""

    builds_on_meta: ClassVar[bool] = False
    """Whether all that the model holds is in parameters and saved buffers, so that loading need not build it twice."""
    config: Any
    """The configuration that the model has now."""
    trained_for: TrainedFor
    """What the model was trained for; to be set by whoever trains it."""
    adapted: tuple[str, ...] = ()
    """What was adapted when it was loaded from weights of another size."""
    told_of_weights: Mapping[str, Any] = MappingProxyType({})
    """What timm was told of the weights, for example who made them; kept for `default_cfg`."""
    _made_on_meta: bool = False
    entry_point: str | None = None
    """The name that it was made by."""

    def __init__(self, config: ModelConfig, **parts: Callable[..., nn.Module] | None) -> None:
        super().__init__()
        self.config = config
        self.trained_for = TrainedFor()
        self.given_parts = {name: part for name, part in parts.items() if part is not None}

    def needs(self) -> dict[str, str]:
        """What loading the model takes beside its folder: the name of each part that was passed, and of its maker."""
        return {name: describe(part) for name, part in self.given_parts.items()}

    def reset_parameters(self) -> None:
        """Initialise every parameter and buffer anew, by the `reset_parameters` of each module.

        Raises:
            ConfigError: the model was built on the meta device, and a module has none.
        """
        if any(tensor.is_meta for tensor in (*self.parameters(), *self.buffers())):
            self._made_on_meta = True
            return  # there are no values yet
        for name, module in list(self.named_modules())[:0:-1]:  # what a module holds comes before it
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if callable(reset):
                reset()
            elif self._made_on_meta and (module._parameters or module._buffers):
                raise ConfigError(
                    f"{name}: expected a module with reset_parameters, as the model was built on the meta device, got "
                    f"{type(module).__name__}; give it one, or build the model elsewhere"
                )

    def import_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[str], str]]:
        """Rename what a file holds to the names of this model.

        Returns:
            The state, and a function from a name of this model to what the file calls it.
        """
        return dict(state), str

    def adapt_state(self, state: dict[str, Tensor], changed: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
        """Fit weights of another size to this model, for fine-tuning.

        Args:
            state: parameters by this model's names.
            changed: the options that the caller chose, which alone may differ from what the weights were made with.

        Returns:
            The state, and what was adapted, in words.
        """
        return state, []

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay would harm: those that are marked so."""
        return undecayed_names(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        if enable:
            raise ConfigError(f"grad_checkpointing: expected False, as {type(self).__name__} keeps its activations")

    @classmethod
    def describe_input(cls, config: Any) -> dict[str, Any]:
        """What models of a configuration read, in the words of timm: `input_size`, `num_classes`, `mean`, ..."""
        return {}

    @property
    def default_cfg(self) -> dict[str, Any]:
        """What the model is, in the form that timm reads."""
        return {
            "architecture": self.entry_point or self.family,
            "first_conv": self.first_conv,
            "classifier": self.classifier,
            "pool_size": None,
            **self.told_of_weights,
            **self.describe_input(self.config),
        }

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The same as `default_cfg`, under the name that timm reads most."""
        return self.default_cfg

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `model.safetensors` and `config.json`.

        Args:
            folder: where to; made where it is missing.

        Raises:
            CheckpointError: the folder cannot be written; what it held is as it was.
        """
        saving.save(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        **parts: Callable[..., nn.Module],
    ) -> Self:
        """Load what `save_pretrained` wrote.

        Args:
            folder_or_hub_id: a folder, or the id of a repository on the Hugging Face hub.
            dtype: of the floating parameters; None: as they were saved.
            device: where to put the model; None: the CPU.
            revision: the commit, tag or branch of the hub's repository; a commit's hash pins what is loaded.
            **parts: what the folder says that the model needs, for example `make_block`.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit.
        """
        model = saving.load(folder_or_hub_id, cls, dtype=dtype, device=device, revision=revision, parts=parts)
        assert isinstance(model, cls)
        return model


class DiffusionModel(Model, ABC):
    """A model `(x, t, y) -> prediction` of the kind that samplers and objectives call.

    A subclass defines `forward`; where its blocks are in `self.blocks`, `forward_intermediates` works.

    Args:
        config: what the model is made of.
        **parts: see `Model`.
    """

    config_class: ClassVar[type[ModelConfig]] = DiffusionConfig
    config: Any
    time_range: tuple[float, float] = (0.0, 1.0)
    """The times that the model accepts; solvers read it."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict what the objective asks for, for example the velocity at time `t`.

        Args:
            x: (B, in_chans, h, w).
            t: (B,), times in `time_range`: 0 noise, 1 data.
            y: (B,) int64 class ids, up to and including the null class, or None.

        Returns:
            (B, out_chans, h, w).
        """

    def forward_features(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """What the last block returns; the same arguments as `forward`."""
        return self.forward_intermediates(x, t, y, indices=1)[0]

    def forward_intermediates(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        *,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: Literal["NHWC", "NCHW"] = "NCHW",
    ) -> list[Tensor]:
        """What the blocks return.

        Args:
            x: see `forward`.
            t: see `forward`.
            y: see `forward`.
            indices: which blocks, counted from the end where negative; an int n: the last n; None: all.
            norm: accepted where the model has a final norm, which is then applied.
            output_fmt: "NCHW": (B, C, H, W); "NHWC": (B, H, W, C).

        Returns:
            One map a block, in the order of `indices`.

        Raises:
            ConfigError: an index or an option is out of range.
        """
        if norm:
            raise ConfigError(f"norm: expected False, as {type(self).__name__} has no final norm, got True")
        return capture_blocks(self, (x, t, y), indices, output_fmt)

    @property
    def img_size(self) -> tuple[int, int]:
        """(h, w) of the images that the model is made for, in pixels."""
        return self.config.img_size

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return self.config.in_chans

    @property
    def out_chans(self) -> int:
        """Channels of the prediction."""
        return self.config.output_channels

    @property
    def num_classes(self) -> int:
        """Classes, without the null class; 0: unconditional."""
        return self.config.num_classes

    @property
    def null_class(self) -> int | None:
        """The id of the null class that guidance uses, or None where the model has none."""
        return self.config.null_class

    @property
    def condition(self) -> Condition:
        """What the model is told beside the image and the time."""
        return Condition("class" if self.num_classes else "none", self.num_classes, self.null_class)

    @classmethod
    def describe_input(cls, config: Any) -> dict[str, Any]:
        """See `Model.describe_input`. Images of one or three channels are taken as pixels, which the model
        sees in [-1, 1]; others as latents, which it sees as they are.
        """
        centre = 0.5 if config.in_chans in (1, 3) else 0.0
        return {
            "input_size": (config.in_chans, *config.img_size),
            "fixed_input_size": False,
            "num_classes": config.num_classes,
            "mean": (centre,) * config.in_chans,
            "std": (centre or 1.0,) * config.in_chans,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
        }

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Take another number of classes; a family that can overrides this."""
        raise ConfigError(
            f"{type(self).__name__} cannot change its classes; build another with num_classes={num_classes}"
        )

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size; a family that can overrides this."""
        raise ConfigError(f"{type(self).__name__} cannot change its image size; build another with img_size={img_size}")
