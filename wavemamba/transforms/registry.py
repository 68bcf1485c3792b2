"""Frequency transforms by name."""

from __future__ import annotations

from collections.abc import Callable

from wavemamba.checks import expect_levels
from wavemamba.errors import ConfigError
from wavemamba.registry import Registry
from wavemamba.transforms.base import FrequencyTransform

MOST_LEVELS = 10
"""Maps are padded to a multiple of 2**levels."""

Make = Callable[[int], FrequencyTransform]

_makers: Registry[Make] = Registry("transform", "register_transform(name, make) adds one's own")


def register_transform(name: str, make: Make) -> None:
    """Let `frequency_transform`, blocks and configs take a transform by name.

    Saved models refer to a transform by its name: a process that loads them registers it first.

    Args:
        name: letters, digits, "_" and ".".
        make: `levels ->` the transform; a subclass of `FrequencyTransform` that takes `levels` alone is one.

    Raises:
        ConfigError: the name is taken by another transform, or is no such word.
    """
    if not callable(make):
        raise ConfigError(f"make: expected a function of levels that returns a FrequencyTransform, got {make!r}")
    _makers.add(name, make)


def list_transforms() -> list[str]:
    """The names that `frequency_transform` takes, sorted."""
    return sorted(_makers)


def frequency_transform(name: str, levels: int = 2) -> FrequencyTransform:
    """Make a transform by name.

    Args:
        name: "haar", "dct" (blocks of side `2**levels`), a discrete wavelet of PyWavelets ("db2", "sym4", ...) but
            "dmey", or one of `register_transform`.
        levels: number of splits, 0 to 10.

    Raises:
        ConfigError: the name or `levels` is not one of these.
    """
    expect_levels(levels, MOST_LEVELS)
    transform = _makers.find(name)(levels)
    if not isinstance(transform, FrequencyTransform):
        raise ConfigError(f"transform: expected {name!r} to make a FrequencyTransform, got {transform!r}; subclass it")
    return transform
