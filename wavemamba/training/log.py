"""A run's log: one line of JSON a record, in step with its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wavemamba.errors import BackendUnavailable
from wavemamba.files import write_atomically

LOG_FILE = "log.jsonl"


class RunLog:
    """Scalars in `log.jsonl`, pictures in `samples/`, and both in `tensorboard/` where asked for.

    Args:
        folder: of the run.
        tensorboard: also write for TensorBoard.
        enabled: whether this process writes at all; of many, one should.

    Raises:
        BackendUnavailable: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: str | Path, *, tensorboard: bool = False, enabled: bool = True) -> None:
        self.enabled = enabled
        self.folder = Path(folder)
        self.path = self.folder / LOG_FILE
        self._board: Any = None
        self._board_type: Any = _summary_writer() if tensorboard and enabled else None

    def start(self, step: int, settings: dict[str, Any]) -> None:
        """Begin, or go on after `step`: records of later steps, which are now taken again, are dropped."""
        if not self.enabled:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(record) + "\n" for record in read_log(self.path) if record["step"] <= step]
        write_atomically(self.path, "".join(kept).encode())
        write_atomically(self.folder / "settings.json", json.dumps(settings, indent=1).encode())
        if self._board_type is not None:
            self._board = self._board_type(str(self.folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the values of one step."""
        if not self.enabled:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, image: Image.Image) -> None:
        """Save a picture of one step."""
        if not self.enabled:
            return
        path = self.folder / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path, optimize=True)
        if self._board is not None:
            self._board.add_image("samples", np.asarray(image), step, dataformats="HWC")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl`; lines that a kill cut off or a crash of the machine spoilt are left out."""
    path = Path(path)
    text = path.read_text(errors="replace") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    return [record for line in whole.splitlines() if (record := _record(line)) is not None]


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BackendUnavailable(
            f"tensorboard: expected it to be installed ({error}); pip install 'wavemamba[train]'"
        ) from error
    return SummaryWriter
