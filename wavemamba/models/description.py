"""What a model says of itself: what it is told, and what it was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from wavemamba.errors import ConfigError


@dataclass(frozen=True)
class TrainedFor:
    """What a model was trained for; saved beside its weights.

    Args:
        objective: the plain values of `Objective.to_dict()`: path, prediction, time sampling; None: not known.
        autoencoder: the folder or hub id of the autoencoder whose latents it makes; None: it makes pixels, or it is not
            known.
        class_names: what its classes are called, in order; empty: not known.

    Raises:
        ConfigError: a value has another type.
    """

    objective: dict[str, Any] | None = None
    autoencoder: str | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every value."""
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.objective is not None and not isinstance(self.objective, dict):
            raise ConfigError(f"objective: expected a dict of plain values or None, got {self.objective!r}")
        if self.autoencoder is not None and not isinstance(self.autoencoder, str):
            raise ConfigError(f"autoencoder: expected a folder, a hub id or None, got {self.autoencoder!r}")
        for name in self.class_names:
            if not isinstance(name, str):
                raise ConfigError(f"class_names: expected words, got {name!r}")


@dataclass(frozen=True)
class Condition:
    """What a diffusion model is told beside the image and the time.

    Args:
        kind: "class": `y` holds class ids (B,); "tokens": `y` holds tokens (B, T, width), of a text for example;
            "none": nothing.
        num_classes: classes, without the null class.
        null_class: the id that stands for "any class", or None where there is none.
        width: of a token.
        further: keywords that `forward` takes beside `y`.
    """

    kind: Literal["class", "tokens", "none"]
    num_classes: int = 0
    null_class: int | None = None
    width: int = 0
    further: tuple[str, ...] = ()
