"""Small data that tests make: pictures, tar shards, and a source that counts."""

import io
import json
import tarfile

import numpy as np
import torch
from PIL import Image

from wavemamba.data import ExampleSource, StreamedSource


def png(number, size=(8, 8)):
    """The bytes of a picture whose pixels are all `number`."""
    file = io.BytesIO()
    Image.new("L", size, number).save(file, "png")
    return file.getvalue()


def write_images(folder, count, size=(20, 14), classes=("cat", "dog")):
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def write_tar(path, members):
    """A tar file of `(name, bytes)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder, lengths, label=lambda number: str(number % 3)):
    """Tar shards of pictures whose pixels are their numbers, counted over all shards."""
    number = 0
    for shard, length in enumerate(lengths):
        members = []
        for _ in range(length):
            members.append((f"{number:04d}.png", png(number)))
            members.append((f"{number:04d}.cls", label(number).encode()))
            members.append((f"{number:04d}.json", json.dumps({"number": number}).encode()))
            number += 1
        write_tar(folder / f"shard-{shard:02d}.tar", members)
    return folder


def numbers_of(batches):
    """What the pictures of batches hold, 0 to 255, with their labels."""
    return [[round(float(v + 1) * 127.5) for v in x[:, 0, 0, 0]] + y.tolist() for x, y in batches]


class Counting(ExampleSource):
    """A source whose examples say which they are and what was drawn for them."""

    classes = ("a", "b")
    shape = (1, 1, 1)

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def example(self, index, generator=None):
        drawn = 0.0 if generator is None else torch.rand((), generator=generator, dtype=torch.float32).item()
        return torch.tensor([[[index + drawn]]], dtype=torch.float32), index % 2

    def fingerprint(self):
        return str(self.count)


class CountingStream(StreamedSource):
    """A stream whose rows say which they are, and which keeps count of what is read of it."""

    classes = ("a", "b")
    shape = (1, 1, 1)
    num_examples = None

    def __init__(self, lengths, lanes=4, buffer=4):
        self.lengths, self.lanes, self.buffer = lengths, lanes, buffer
        self.num_shards = len(lengths)
        self.read = []

    def rows(self, shard, start=0):
        for row in range(start, self.lengths[shard]):
            self.read.append((shard, row))
            yield sum(self.lengths[:shard]) + row

    def shard_length(self, shard):
        return self.lengths[shard]

    def decode(self, row, generator=None):
        drawn = torch.rand((), generator=generator, dtype=torch.float32).item()
        return torch.tensor([[[row + drawn]]], dtype=torch.float32), row % 2

    def fingerprint(self):
        return str(self.lengths)
