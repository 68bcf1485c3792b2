"""What solvers tell about their work: progress while they run, and counts afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


class Progress(NamedTuple):
    """Handed to a callback after every step."""

    step: int
    """Steps done so far, from 1."""
    total: int | None
    """Steps in all; None where the solver chooses its own."""
    time: float
    """Time reached, 0 noise, 1 data; the least advanced sample's where every sample has its own steps."""
    x: Tensor
    """(B, ...), the state at `time`; not a copy, and not to be written to."""


OnStep = Callable[[Progress], Any]
"""What `callback=` takes."""


@dataclass(frozen=True)
class SampleInfo:
    """How a sample was made."""

    solver: str
    steps: int | None
    """Steps taken; attempts less the rejected ones where the step adapts; None where the solver does not tell."""
    nfe: int
    """Number of function evaluations: batched calls of the model."""
    rejected: int = 0
    """Steps that error control refused."""
    start: float = 0.0
    """Time of the noise."""
    end: float = 1.0
    """Time of the sample."""
