"""Averaged copies of a model, one for each decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn


class Averages:
    """Exponential moving averages of a model's weights, by timm's `ModelEmaV3`.

    Args:
        model: at its start, not yet wrapped.
        decays: different ones, in [0, 1).
        warmup: lower decays at first: `min(decay, 1 - (1 + step) ** (-2/3))`.
        device: of the copies.
    """

    def __init__(self, model: nn.Module, decays: Sequence[float], *, warmup: bool, device: torch.device) -> None:
        self._of = {
            f"{decay:g}" if float(f"{decay:g}") == decay else repr(decay): ModelEmaV3(
                model, decay=decay, use_warmup=warmup
            ).to(device)
            for decay in decays
        }

    @property
    def models(self) -> dict[str, nn.Module]:
        """The averaged models by their decay in words."""
        return {name: average.module for name, average in self._of.items()}

    @property
    def first(self) -> nn.Module:
        """The averaged model of the first decay."""
        return next(iter(self.models.values()))

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` steps."""
        for average in self._of.values():
            average.update(model, step=step)

    def shard(self, accelerator: Any) -> None:
        """Shard the copies as accelerate shards the model (FSDP2)."""
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        for average in self._of.values():
            average.module = fsdp2_prepare_model(accelerator, average.module)
