"""A run's data looked at before its first step: by all processes together, and once in the run's life."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from wavemamba.data import ExampleSource, Findings
from wavemamba.files import write_atomically, writing
from wavemamba.training.processes import gather, rank, world_size

LOOKED_AT_FILE = "looked_at.json"


@dataclass(frozen=True)
class Look:
    """What a run has looked at.

    Attributes:
        fingerprint: of the data that are trained on.
        examples: in the source that was looked at.
        thorough: whether each was read.
        findings: what was found.
    """

    fingerprint: str
    examples: int
    thorough: bool
    findings: Findings


def look_together(source: ExampleSource, *, thorough: bool) -> Findings:
    """A look at all examples, of which each process takes its share; every process has to call it, and waits."""
    count, number, total = world_size(), rank(), len(source)
    own = source.look(range(total * number // count, total * (number + 1) // count), thorough=thorough)
    return Findings(own.how, {index: why for found in gather(own) for index, why in found.faults.items()})


def kept_look(folder: Path) -> Look | None:
    """The look that a run keeps in its folder; None where there is none that can be read."""
    try:
        found = json.loads((folder / LOOKED_AT_FILE).read_text())
        faults = {int(index): str(why) for index, why in found.pop("faults").items()}
        return Look(findings=Findings(found.pop("how"), faults), **found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def keep_look(folder: Path, look: Look) -> None:
    """Keep a look in the folder of a run.

    Raises:
        CheckpointError: it cannot be written.
    """
    values = asdict(look)
    values |= values.pop("findings")
    with writing(folder):
        write_atomically(folder / LOOKED_AT_FILE, json.dumps(values).encode())
