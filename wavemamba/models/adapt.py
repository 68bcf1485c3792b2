"""Fitting the weights of one model to another of a different size, for fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.layers.embeddings import resample_position


def adapt_classes(old: Tensor | None, fresh: Tensor, classes: int) -> tuple[Tensor, str]:
    """A table of class vectors for other classes: fresh rows, and the old null class.

    Args:
        old: (rows, C), the last of several rows the null class; a single row or None: an unconditional model.
        fresh: (classes, C), or (classes + 1, C) with a null class.
        classes: how many classes the new model has.

    Returns:
        A table of the shape of `fresh`, and what was done in words.
    """
    table = fresh.detach().clone()
    if old is None or table.shape[0] == classes:
        return table, f"label table: {classes} fresh classes"
    table[-1] = old[-1]
    return table, f"label table: {classes} fresh classes in place of {old.shape[0] - 1}, the null class kept"


def adapt_dropout(old: Tensor, fresh: Tensor, classes: int) -> tuple[Tensor, str]:
    """A table for the same classes, with a null class where the old one has none, or the reverse."""
    if old.shape[0] > classes:
        return old[:classes].clone(), "label table: the null class dropped"
    return torch.cat([old, fresh.detach()[classes:].to(old.dtype)]), "label table: a fresh null class added"


def adapt_position(old: Tensor, height: int, width: int) -> tuple[Tensor, str]:
    """Positions (1, H, W, C) resampled to another grid, bicubic."""
    grid = f"{old.shape[1]} x {old.shape[2]}"
    return resample_position(old, height, width).contiguous(), f"positions: {grid} resampled to {height} x {width}"


def adapt_input(weight: Tensor, channels: int) -> tuple[Tensor, str]:
    """The patch layer (C, channels, p, p) for other channels.

    The old channels are repeated, and scaled so that the same value in every channel gives the same result; for one
    channel they are summed.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True), f"patch layer: {old} channels summed to 1"
    taken = [i % old for i in range(channels)]
    return weight[:, taken] * (old / channels), f"patch layer: {old} channels repeated to {channels}, scaled"


def adapt_output(tensor: Tensor, cells: int, channels: int) -> tuple[Tensor, str]:
    """The output layer's weight (cells * channels, C), or bias, for other channels: the old ones repeated.

    Args:
        tensor: rows ordered (cell of the patch, channel).
        cells: pixels of a patch.
        channels: how many there shall be.
    """
    old = tensor.shape[0] // cells
    taken = [i % old for i in range(channels)]
    rows = tensor.unflatten(0, (cells, old))[:, taken].flatten(0, 1)
    return rows, f"output layer: {old} channels repeated to {channels}"
