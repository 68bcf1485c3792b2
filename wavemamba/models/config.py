"""What the configurations of all families share: plain values that check themselves."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wavemamba.errors import ConfigError
from wavemamba.names import check_names

if TYPE_CHECKING:
    from typing_extensions import Self

MOST = 2**20
"""The largest size of any kind: products of a few of them still fit into 63 bits."""
MOST_BLOCKS = 4096


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Options of a model: numbers, words, and tuples of them.

    A family's configuration is a frozen dataclass that derives from this one and checks its values in `__post_init__`.
    """

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values; an unknown name is a `ConfigError` that names the nearest one."""
        check_names(values, cls.option_names())
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    @classmethod
    def option_names(cls) -> list[str]:
        """The names of the options."""
        return [field.name for field in dataclasses.fields(cls)]

    def replace(self, **changes: Any) -> Self:
        """The same options but for `changes`, checked again."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(ModelConfig):
    """What every diffusion model is asked: its images and its classes.

    Raises:
        ConfigError: a value is out of its range.
    """

    img_size: tuple[int, int] = (32, 32)
    """(h, w) of the image or latent, in pixels; an int for a square."""
    in_chans: int = 4
    """Channels of the image or latent."""
    out_chans: int | None = None
    """Channels of the output; None: `in_chans`."""
    num_classes: int = 1000
    """Classes, without the null class; 0: an unconditional model."""
    class_dropout: float = 0.15
    """Probability in [0, 1) that training replaces a label by the null class; 0: no null class."""

    def __post_init__(self) -> None:
        """Check every value."""
        size: Any = self.img_size
        size = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) else size
        object.__setattr__(self, "img_size", size)
        pair = isinstance(size, tuple) and len(size) == 2
        expect("img_size", size, lambda v: pair and all(whole(s, 1) for s in v), f"an int or a pair, 1 to {MOST}")
        expect_whole(self, 1, "in_chans")
        expect_whole(self, 0, "num_classes")
        expect("out_chans", self.out_chans, lambda v: v is None or whole(v, 1), f"None or an int from 1 to {MOST}")
        expect("class_dropout", self.class_dropout, lambda v: 0 <= v < 1, "a probability in [0, 1)")

    @property
    def null_class(self) -> int | None:
        """The id of the null class, or None where there is none."""
        return self.num_classes if self.num_classes and self.class_dropout > 0 else None

    @property
    def predicted_channels(self) -> int:
        """Channels of the prediction."""
        return self.in_chans if self.out_chans is None else self.out_chans

    @property
    def output_channels(self) -> int:
        """Channels of what the model returns: those of the prediction, and what a family puts beside it."""
        return self.predicted_channels


@dataclass(frozen=True, kw_only=True)
class PatchConfig(DiffusionConfig):
    """A diffusion model over patches.

    Raises:
        ConfigError: a value is out of its range.
    """

    patch_size: int = 2
    """Side of a patch, in pixels; sides of the image are multiples of it."""
    dim: int = 1024
    """Width C of a token, a multiple of 4."""
    depth: int = 16
    """Blocks."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        expect_whole(self, 1, "patch_size", "dim")
        expect("depth", self.depth, lambda v: whole(v, 1, MOST_BLOCKS), f"an int from 1 to {MOST_BLOCKS}")
        expect("dim", self.dim, lambda v: v % 4 == 0, "a multiple of 4")
        fits = f"an int or a pair, multiples of patch_size = {self.patch_size}"
        if self.patch_shape != (self.patch_size, self.patch_size):
            fits = f"(h, w), multiples of the {self.patch_shape} pixels of a token"
        expect("img_size", self.img_size, lambda v: not any(map(operator.mod, v, self.patch_shape)), fits)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(rows, columns) of pixels in a token."""
        return self.patch_size, self.patch_size

    @property
    def learns_positions(self) -> bool:
        """Whether the positions are trained."""
        return True

    @property
    def head_parts(self) -> int:
        """How many maps of `predicted_channels` the output layer computes: the prediction, and what comes beside it."""
        return 1

    @property
    def grid_size(self) -> tuple[int, int]:
        """(H, W), the token grid of an image of `img_size`."""
        return self.img_size[0] // self.patch_shape[0], self.img_size[1] // self.patch_shape[1]


def whole(value: object, least: int, most: int = MOST) -> bool:
    """Whether a value is an int in `least .. most`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def expect(name: str, value: Any, fits: Callable[[Any], bool], expected: str) -> None:
    """Raise `ConfigError` unless `fits(value)`; a value of another type does not fit."""
    try:
        good = bool(fits(value))
    except TypeError:
        good = False
    if not good:
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")


def expect_whole(config: ModelConfig, least: int, *names: str) -> None:
    """Raise `ConfigError` unless the options of these names are ints of at least `least`."""
    for name in names:
        expect(name, getattr(config, name), lambda v: whole(v, least), f"an int from {least} to {MOST}")
