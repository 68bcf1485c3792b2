"""What a sampler reads of a model, and the mode that it puts it in, also where other modules wrap it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and every module as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
