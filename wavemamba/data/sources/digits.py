"""Scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wavemamba.data.base import ExampleSource, digest_of
from wavemamba.data.registry import register_source
from wavemamba.errors import ConfigError, DataError


class Digits(ExampleSource):
    """Scikit-learn's 1,797 handwritten digits, `(1, 8, 8)` in [-1, 1] (its 0..16 divided by 8, minus 1).

    Shipped inside the scikit-learn package: nothing is downloaded. Never mirrored, a mirrored digit is another sign.

    Raises:
        DataError: scikit-learn is not installed.
    """

    draws = False

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # ships no types
        except ImportError as error:
            raise DataError(
                f"digits: expected scikit-learn to be installed ({error}); pip install 'wavemamba[train]'"
            ) from error
        bunch = load_digits()
        self.images = torch.from_numpy(bunch.images.astype(np.float32))[:, None] / 8.0 - 1.0
        self.labels = torch.from_numpy(bunch.target.astype(np.int64))
        self.classes = tuple(str(digit) for digit in range(10))
        self.shape = (1, 8, 8)

    def __len__(self) -> int:
        return len(self.images)

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Image `index` and its digit; `generator` is not drawn from."""
        return self.images[index], int(self.labels.numpy()[index])

    def fingerprint(self) -> str:
        """Of all images and labels."""
        return digest_of(self.images.numpy().tobytes(), self.labels.numpy().tobytes())


def open_digits(what: str, *, size: int | None = None, channels: int | None = None, mirror: bool = False) -> Digits:
    """Open the digits.

    Args:
        what: nothing.
        size: 8, if anything.
        channels: 1, if anything.
        mirror: off.

    Raises:
        ConfigError: the options ask for what digits are not.
    """
    if mirror:
        raise ConfigError("mirror: expected it off for digits, a mirrored digit is another sign")
    if what or size not in (None, 8) or channels not in (None, 1):
        raise ConfigError(
            f"digits: expected 8 x 8 pixels and 1 channel, got {what or ''} {size=}, {channels=}; leave it out"
        )
    return Digits()


register_source("digits", open_digits, about="'digits'")
