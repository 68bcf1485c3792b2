"""What a sampler reads of a model, also where other modules wrap it."""

from __future__ import annotations

from typing import Any

from torch import nn

from wavemamba.errors import ConfigError

DESCRIPTION = ("in_chans", "img_size", "num_classes", "null_class")


def described(model: nn.Module) -> Any:
    """The outermost module that says what a diffusion model says of itself: the model, or what wraps it.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(model, nn.Module):
        for module in model.modules():
            if all(hasattr(module, name) for name in DESCRIPTION):
                return module
    raise ConfigError(
        f"model: expected a diffusion model with {', '.join(DESCRIPTION)}, got {type(model).__name__}; derive it from "
        "wavemamba.models.DiffusionModel"
    )
