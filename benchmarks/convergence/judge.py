"""The judge: a small classifier fitted on real pictures that no model was trained on, and what it says of samples.

    python benchmarks/convergence/judge.py            # fits the judges anew and writes judges/, which is committed
    python benchmarks/convergence/judge.py crops      # one of them

Its features are what distances, precision and recall are measured in. All runs of a data set are judged by the same
weights: their SHA-256 stands in every result.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pictures import LOADERS, Parts, Pictures, load
from safetensors.torch import load_file, save
from table import FULL
from torch import Tensor, nn
from torch.nn import functional as F

from wavemamba.files import write_atomically
from wavemamba.metrics import frechet_distance, nearest_distances, precision_recall
from wavemamba.seeds import generator_for

JUDGES = Path(__file__).parent / "judges"
FEATURES = 32
FITTING_STEPS, FITTING_BATCH = 600, 64


class Classifier(nn.Module):
    """Three convolutions, a layer of features, and the classes.

    Args:
        channels: of the pictures.
        classes: how many.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            *(nn.Conv2d(channels, 32, 3, padding=1), nn.GELU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.GELU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(2)),
        )
        self.features = nn.Linear(256, FEATURES)
        self.head = nn.Linear(FEATURES, classes)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("deviation", torch.ones(FEATURES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (n, c, h, w) to features (n, 32), of unit variance on what it was fitted on, and logits."""
        features = self.features(self.maps(x).flatten(1))
        return (features - self.mean) / self.deviation, self.head(F.gelu(features))


def fit(source: Pictures) -> Classifier:
    """A classifier of a part, trained on pictures that are shifted by up to two pixels (one in small pictures)."""
    generator, most = generator_for(0, "judge"), 2 if source.shape[1] > 8 else 1
    torch.manual_seed(0)
    classifier = Classifier(source.shape[0], len(source.classes))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, FITTING_STEPS)
    for _ in range(FITTING_STEPS):
        which = torch.randint(len(source), (FITTING_BATCH,), generator=generator)
        shifts = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
        x = F.pad(source.images[which], (most,) * 4, mode="replicate")
        x = x.roll(shifts, (2, 3))[..., most:-most, most:-most]
        loss = F.cross_entropy(classifier(x)[1], source.labels[which], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        features = torch.cat([classifier.features(classifier.maps(x).flatten(1)) for x in source.images.split(256)])
    classifier.mean.copy_(features.mean(0))
    classifier.deviation.copy_(features.std(0))
    return classifier.eval().requires_grad_(False)


class Judge:
    """Scores samples of one data set.

    Args:
        name: of the data set.
        parts: the data set.
    """

    def __init__(self, name: str, parts: Parts) -> None:
        path = JUDGES / f"{name}.safetensors"
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.classifier = Classifier(parts.train.shape[0], len(parts.train.classes)).eval().requires_grad_(False)
        self.classifier.load_state_dict(load_file(path))
        self.train = parts.train.images.flatten(1)
        self.reference, _ = self._read(parts.reference.images)

    def scores(self, images: Tensor, classes: Tensor) -> dict[str, float]:
        """Of pictures (n, c, h, w) that should be of classes (n,)."""
        images = images.clamp(-1, 1)
        features, read = self._read(images)
        precision, recall = precision_recall(features, self.reference)
        return {
            "frechet": frechet_distance(features, self.reference),
            "precision": precision,
            "recall": recall,
            "read_as_asked": (read == classes).double().mean().item(),
            "nearest_training_picture": nearest_distances(images.flatten(1), self.train).median().item(),
        }

    @torch.no_grad()
    def _read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [self.classifier(x) for x in images.split(256)]
        return torch.cat([features for features, _ in pairs]), torch.cat([logits for _, logits in pairs]).argmax(1)


def real_scores(name: str, parts: Parts, samples: int) -> dict[str, Any]:
    """What real pictures score: as many of those trained on as there are samples, and those of the reference."""
    judge, train = Judge(name, parts), parts.train
    floors = []
    for draw in range(10):
        which = torch.randperm(len(train), generator=generator_for(draw, "floor"))[:samples]
        floors.append(judge.scores(train.images[which], train.labels[which]))
    mean = {key: sum(floor[key] for floor in floors) / len(floors) for key in floors[0]}
    del mean["nearest_training_picture"]  # itself
    own = judge.scores(parts.reference.images, parts.reference.labels)
    return {
        "data": name,
        "judge": judge.sha256,
        "pictures": {part: len(getattr(parts, part)) for part in parts._fields},
        "samples": samples,
        "training_pictures": mean,
        "frechet_of_single_draws": [floor["frechet"] for floor in floors],
        "reference": {key: own[key] for key in ("read_as_asked", "nearest_training_picture")},
    }


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    JUDGES.mkdir(exist_ok=True)
    for name in names or LOADERS:
        parts = load(name)
        write_atomically(JUDGES / f"{name}.safetensors", save(fit(parts.judge).state_dict()))
        found = real_scores(name, parts, FULL.samples)
        write_atomically(JUDGES / f"{name}.json", (json.dumps(found, indent=1) + "\n").encode())
        print(name, json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
