"""A run's log: one line of JSON a record, in step with its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wavemamba.files import write_atomically, writing

LOG_FILE = "log.jsonl"
SETTINGS_FILE = "settings.json"


class RunLog:
    """Scalars in `log.jsonl`, a line a record; the same lines whether a run was interrupted or not.

    Args:
        folder: of the run.
        enabled: whether this process writes at all; of many, one should.
    """

    def __init__(self, folder: str | Path, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.folder = Path(folder)
        self.path = self.folder / LOG_FILE

    def start(self, step: int, settings: dict[str, Any]) -> None:
        """Begin, or go on after `step`: records of later steps, which are now taken again, are dropped.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        if not self.enabled:
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            kept = [json.dumps(record) + "\n" for record in read_log(self.path) if record["step"] <= step]
            write_atomically(self.path, "".join(kept).encode())
            write_atomically(self.folder / SETTINGS_FILE, json.dumps(settings, indent=1).encode())

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the values of one step.

        Raises:
            CheckpointError: the disk is full.
        """
        if not self.enabled:
            return
        with writing(self.folder), self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl`; lines that a kill cut off or a crash of the machine spoilt are left out."""
    path = Path(path)
    text = path.read_text(errors="replace") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    return [record for line in whole.splitlines() if (record := _record(line)) is not None]


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
