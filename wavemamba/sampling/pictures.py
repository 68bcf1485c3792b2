"""What a sampler returns: images, and what moved them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from wavemamba.errors import CheckpointError
from wavemamba.files import write_atomically
from wavemamba.sampling.grids import image_grid, picture_of, to_uint8

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Pictures:
    """Drawn pictures.

    Args:
        images: (n, c, H, W), in about [-1, 1], float32, on the CPU; latents where there is no autoencoder for them.
        class_names: what each picture shows; empty where the model knows no classes.
        record: everything that moves the pictures, as plain values.
    """

    images: Tensor
    class_names: tuple[str, ...]
    record: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Pictures({len(self)} of {tuple(self.images.shape[1:])}, {self.record['settings']['solver']})"

    def to_pil(self) -> list[Image.Image]:
        """Each picture for Pillow: grey where it has one channel, else its first three as red, green and blue."""
        return [picture_of(pixels) for pixels in to_uint8(self.images)]

    def grid(
        self, columns: int | None = None, *, row_labels: Sequence[str] | None = None, tile: int = 0
    ) -> Image.Image:
        """All pictures as one, in rows.

        Args:
            columns: pictures a row; None: a row for each class, where every class has as many pictures one after the
                other; else about a square.
            row_labels: words to the left of each row; None: the class names, where each row is one class.
            tile: least side of a picture; small ones are enlarged by whole factors.
        """
        wide = self._columns() if columns is None else columns
        names = self.class_names
        rows = [names[i : i + wide] for i in range(0, len(names), wide)]
        if row_labels is None:
            row_labels = [row[0] for row in rows] if all(len(set(row)) == 1 for row in rows) else ()
        return image_grid(self.images, wide, row_labels=row_labels, tile=tile)

    def save(self, folder: str | Path) -> Path:
        """Write `00000.png` and so on, and `record.json`; returns the folder.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            for i, picture in enumerate(self.to_pil()):
                picture.save(target / f"{i:05d}.png")
            write_atomically(target / "record.json", (json.dumps(self.record, indent=1) + "\n").encode())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{target}: expected a folder that can be written, got: {error}") from error
        return target

    def _columns(self) -> int:
        names, count = self.class_names, len(self)
        each = count // max(1, len(dict.fromkeys(names)))
        if names and each > 1 and all(len(set(names[i : i + each])) == 1 for i in range(0, count, each)):
            return each
        return max(1, round(count**0.5))
