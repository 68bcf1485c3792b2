"""What the committed results say: curves over seeds, steps to a distance, and intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student
from table import Row, final_runs, is_done

CONFIDENCE = 0.95
SHARES = ("precision", "recall", "read_as_asked")
"""Scores between 0 and 1; all others are above 0, and their means geometric."""


class Interval(NamedTuple):
    """A mean over seeds, and where the mean of many seeds lies with 95% confidence (Student's t)."""

    mean: float
    low: float
    high: float
    count: int


class Lead(NamedTuple):
    """A ratio of steps over seeds."""

    ratio: Interval
    at_least: bool
    """Not all of the steps are known: it is larger."""


@dataclass(frozen=True)
class Measured:
    """The runs of a row at its learning rate, one a seed."""

    row: Row
    rate: float
    runs: tuple[Mapping[str, Any], ...]
    diverged: int = 0
    """Seeds whose numbers did not stay finite: they are not among the runs."""

    @property
    def seeds(self) -> str:
        """How many seeds are measured."""
        return f"{len(self.runs)} ({self.diverged} more diverged)" if self.diverged else str(len(self.runs))

    @property
    def steps(self) -> tuple[int, ...]:
        """After how many steps they were judged."""
        return tuple(point["step"] for point in self.runs[0]["curve"])

    def at(self, step: int, score: str) -> list[float]:
        """A score of every seed after a step."""
        return [point[score] for run in self.runs for point in run["curve"] if point["step"] == step]

    def mean(self, step: int, score: str) -> Interval:
        """A score over the seeds after a step."""
        values = self.at(step, score)
        if score not in SHARES:
            return ratio_interval(values)
        mean, low, high, count = interval(values)
        return Interval(mean, max(0.0, low), min(1.0, high), count)

    def end(self, score: str) -> Interval:
        """A score at the end of the runs."""
        return self.mean(self.steps[-1], score)


def measured(row: Row, results: Mapping[str, Mapping[str, Any]]) -> Measured | None:
    """What there is of a row; None before a run of it has reached its end."""
    wanted = final_runs(row, results)
    runs = tuple(results[run.key] for run in wanted if run.key in results and is_done(run, results))
    whole = tuple(run for run in runs if "diverged" not in run)
    return Measured(row, wanted[0].rate, whole, len(runs) - len(whole)) if whole else None


def interval(values: Sequence[float]) -> Interval:
    """Mean and confidence interval; of one value the interval is all numbers."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    half = float(student.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def ratio_interval(values: Sequence[float]) -> Interval:
    """The same of ratios and of what is above 0: geometric mean, and the interval of their logarithms."""
    mean, low, high, count = interval([math.log(value) for value in values])
    return Interval(*(math.exp(x) if x < 700 else math.inf for x in (mean, low, high)), count)


def steps_to(curve: Sequence[Mapping[str, float]], distance: float) -> float | None:
    """After how many steps a curve first lies at a distance, straight in the logarithm between its points.

    None where it does not get there, or lies below it from its first point on: then nothing is known.
    """
    for before, after in itertools.pairwise(curve):
        high, low = before["frechet"], after["frechet"]
        if high > distance >= low:
            share = math.log(high / distance) / math.log(high / low)
            return before["step"] + share * (after["step"] - before["step"])
    return None


def lead(ours: Measured, theirs: Measured, distance: float) -> Lead | None:
    """How many times more steps theirs take to a distance than ours; None: not every seed of ours gets there.

    Where a run of theirs does not get there, or one of ours had got there before it was judged first, the ratio is at
    least what the steps say that are known.
    """
    ratios, at_least = [], False
    for own, other in by_seed(ours, theirs):
        steps = [steps_to(curve, distance) for curve in (own["curve"], other["curve"])]
        if steps[0] is None:
            if own["curve"][0]["frechet"] > distance:
                return None
            steps[0], at_least = own["curve"][0]["step"], True
        if steps[1] is None:
            if other["curve"][0]["frechet"] <= distance:
                return None
            steps[1], at_least = other["curve"][-1]["step"], True
        ratios.append(steps[1] / steps[0])
    return Lead(ratio_interval(ratios), at_least) if ratios else None


def by_seed(ours: Measured, theirs: Measured) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The runs of both that have the same seed."""
    others = {run["seed"]: run for run in theirs.runs}
    return [(run, others[run["seed"]]) for run in ours.runs if run["seed"] in others]
