"""What a model checks of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.checks import expect_floating, expect_shape, expect_tensor, on_hand
from wavemamba.errors import ShapeError
from wavemamba.models.config import PatchConfig

_TIME_SLACK = 1e-5  # a solver's last step may end a rounding error outside [0, 1]


def check_inputs(config: PatchConfig, x: Tensor, t: Tensor, y: Tensor | None) -> None:
    """Check what a class-conditional model over patches is called with; see `DiffusionModel.forward`.

    Values are read on the CPU alone, and neither in compiled regions nor under `torch.func`: nothing waits for a GPU or
    breaks a graph.

    Raises:
        ShapeError: a rank, size, dtype or value does not fit.
    """
    check_image_and_time(config, x, t)
    check_labels(config, y, x.shape[0])


def check_image_and_time(config: PatchConfig, x: Tensor, t: Tensor) -> None:
    """Check an image (B, in_chans, h, w) and times (B,) in [0, 1].

    Raises:
        ShapeError: a rank, size, dtype or value does not fit.
    """
    rows, columns = config.patch_shape
    expect_shape("x", x, (None, config.in_chans, None, None), "(B, in_chans, h, w)", "channels come second")
    expect_floating("x", x)
    batch, _, height, width = x.shape
    if height < 1 or width < 1 or height % rows or width % columns:
        patch = f"patch size {rows}" if rows == columns else f"{rows} x {columns} pixels of a token"
        raise ShapeError(
            f"x: expected sides that are multiples of the {patch}, got {tuple(x.shape)}; crop or pad the image"
        )
    expect_shape("t", t, (batch,), "(B,)", "one time a sample, for example t.expand(B)")
    expect_floating("t", t)
    if on_hand(t) and not bool(((t >= -_TIME_SLACK) & (t <= 1 + _TIME_SLACK)).all()):
        raise ShapeError(
            f"t: expected times in [0, 1], 0 noise and 1 data, got {t.min():.4g} to {t.max():.4g}; "
            "divide discrete steps by their number"
        )


def check_labels(config: PatchConfig, y: Tensor | None, batch: int) -> None:
    """Check class ids (B,), or None.

    Raises:
        ShapeError: the model is unconditional, or a size, dtype or value does not fit.
    """
    if y is None:
        return
    expect_tensor("y", y)
    if config.num_classes == 0:
        raise ShapeError(
            f"y: expected None, as the model is unconditional (num_classes=0), got {tuple(y.shape)}; leave y out"
        )
    expect_shape("y", y, (batch,), "(B,)", "one class id a sample")
    if y.dtype not in (torch.int64, torch.int32):
        raise ShapeError(f"y: expected int64 class ids, got {y.dtype}; convert them with .long()")
    last = config.num_classes - (config.null_class is None)  # the null class comes after the classes
    if on_hand(y) and not bool(((y >= 0) & (y <= last)).all()):
        raise ShapeError(
            f"y: expected class ids from 0 to {last}, got {int(y.min())} to {int(y.max())}; "
            "build the model with as many classes as there are"
        )
