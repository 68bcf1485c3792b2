"""The matrix of the study: which model with which options is trained on which data, and in what order.

A row is trained at the learning rate that suits it best, with every seed. `next_runs` says what a row still lacks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 2)
# Four are tried first; then the neighbours of the best, until the best lies between two that were tried.
LADDER = (6.25e-4, 1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
FIRST_RATES = LADDER[2:6]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How long a run is, and how closely it is looked at."""

    steps: int
    rate_steps: int
    """Steps after which learning rates are compared, on the first seed, and after which a run is judged first."""
    judge_every: int
    """Steps from then on between judgements of the averaged model; a divisor of `rate_steps` and `steps`."""
    batch_size: int
    samples: int
    solver_steps: int
    """Heun steps of a sample, each of two evaluations of the model."""
    held_out: int
    """Pictures that the held-out loss is taken over."""


FULL = Scale(steps=600, rate_steps=200, judge_every=100, batch_size=64, samples=400, solver_steps=6, held_out=384)
SMOKE = Scale(steps=5, rate_steps=5, judge_every=5, batch_size=4, samples=10, solver_steps=1, held_out=4)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the matrix."""

    data: str
    name: str
    """Of the contender: unique within its group, on the same data with the same path."""
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    path: str = "gvp"
    group: str = "rivals"
    rate_of: str | None = None
    """The rival whose learning rate is taken; None: its own is looked for."""
    lower: int = 0
    """So many places on the ladder below that rate."""
    length: int = 1
    """Its runs are so many times as long as the others."""

    @property
    def key(self) -> str:
        """For files."""
        return f"{self.group}-{self.data}-{self.path}-{self.name}".replace(" ", "_")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a row."""

    row: Row
    rate: float
    seed: int
    steps: int

    @property
    def key(self) -> str:
        """For files; the length is left out, because a longer run goes on where a shorter one ended."""
        return f"{self.row.key}-rate_{self.rate:g}-seed_{self.seed}"


PATCH = {"digits": 1, "mnist": 4, "crops": 4}  # 8 x 8 tokens each
DIMSUM: dict[str, Any] = {"dim": 64, "depth": 4, "attention_every": 2, "attention_heads": 4, "fusion_heads": 4}
CLASSES = {"class_dropout": 0.1}
DIT: dict[str, Any] = {"dim": 64, "depth": 7, "num_heads": 4, "variance": "none"}
RIVALS: dict[str, tuple[str, dict[str, Any]]] = {
    "DiMSUM": ("dimsum_tiny", DIMSUM),
    "DiT": ("dit_s2", DIT),
    "SiT": ("sit_s2", DIT),
    "ZigMa": ("zigma_s1", {"dim": 64, "depth": 12, "drop_path_rate": 0.0}),
    "DiffuSSM": ("diffussm_s", {"dim": 64, "depth": 6}),
}
DIFFERENT = ("DiMSUM", "DiT", "ZigMa", "DiffuSSM")  # SiT is DiT's network with another clock: one data set shows that
ABLATED = "mnist"
# What a user has to choose, what the paper chose, and what else there is.
QUESTIONS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "second branch": (
        "Mamba over subbands",
        {
            "no wavelet": {"levels": 0, "frequency_scan": "raster"},
            "space alone": {"frequency": "none", "fusion_heads": 8},
            "frequency alone": {"spatial": "none", "fusion_heads": 8},
            "einfft": {"frequency": "einfft"},
        },
    ),
    "transform": ("Haar", {"db2": {"transform": "db2"}, "dct": {"transform": "dct"}}),
    "levels": ("2", {"levels 1": {"levels": 1}, "levels 3": {"levels": 3}}),
    "layout of the subbands": (
        "channel",
        {"layout interleaved": {"layout": "interleaved"}, "layout mosaic": {"layout": "mosaic"}},
    ),
    "fusion": (
        "cross-attention",
        {
            "fusion swap_k": {"fusion": "swap_k"},
            "fusion linear": {"fusion": "linear"},
        },
    ),
    "attention, of fusion and transformer": (
        "of all tokens",
        {
            "windows of 4 x 4": {"fusion": "window", "attention": "window", "attention_window": 4},
            "linear attention": {"fusion": "linear_attention", "attention": "linear_attention"},
        },
    ),
    "transformer between the blocks": (
        "one, shared by its places",
        {
            "attention independent": {"attention_sharing": "independent"},
            "attention none": {"attention_every": 0},
        },
    ),
    "condition": ("adaLN", {"conv_state": {"conditioning": "conv_state"}}),
    "scan order": (
        "rows, turned from block to block",
        {
            "scan snake": {"snake": True},
            "scan hilbert": {"spatial_scan": "hilbert"},
            "scan zigma": {"scan_path": "zigma"},
            "scan sweep": {"scan_path": "sweep"},
            "scan jpeg": {"scan_path": "jpeg"},
            "two directions": {"bidirectional": True},
        },
    ),
    "mixer": (
        "Mamba",
        {
            "mixer mamba2": {"mixer": "mamba2"},
            "mixer gla": {"mixer": "gla"},
            "mixer attention": {"mixer": "attention"},
        },
    ),
    # As many parameters as the others: a block more in the transformer's place.
    "what did well, together": (
        "both branches, cross-attention, a transformer",
        {
            "space, no transformer": {"frequency": "none", "fusion_heads": 8, "attention_every": 0, "depth": 5},
            "linear, no transformer": {"fusion": "linear", "attention_every": 0, "depth": 5},
        },
    ),
}


def _row(data: str, name: str, model: str, options: Mapping[str, Any], **more: Any) -> Row:
    return Row(data=data, name=name, model=model, options={**options, **CLASSES, "patch_size": PATCH[data]}, **more)


def _rivals(data: str, names: Iterable[str] = RIVALS, **more: Any) -> list[Row]:
    return [_row(data, name, *RIVALS[name], **more) for name in names]


ROWS = (
    *_rivals(ABLATED),
    *(row for name in ("DiMSUM", "DiT") for row in _rivals(ABLATED, [name], group="long", rate_of=name, length=3)),
    *_rivals("digits", DIFFERENT),
    # The rate that is best for the whole model lies next to those at which it diverges, and at which some variants do.
    *_rivals(ABLATED, ["DiMSUM"], group="variants", rate_of="DiMSUM", lower=1),
    *(
        _row(ABLATED, name, model, {**options, **change}, group="variants", rate_of="DiMSUM", lower=1)
        for model, options in [RIVALS["DiMSUM"]]
        for _, variants in QUESTIONS.values()
        for name, change in variants.items()
    ),
    *_rivals(ABLATED, DIFFERENT, path="linear"),
    # What is best for a short run diverges in a long one.
    _row(ABLATED, "DiMSUM, half the rate", *RIVALS["DiMSUM"], group="long", rate_of="DiMSUM", lower=1, length=3),
    *_rivals("crops", DIFFERENT),
    # A token of 4 x 8 pixels in three colours has 96 numbers, and 64 channels; one run of ZigMa collapses at its rate.
    _row(
        "crops",
        "DiffuSSM, a step a token",
        "diffussm_s",
        {**RIVALS["DiffuSSM"][1], "shorten": 1},
        rate_of="DiffuSSM",
    ),
    _row("crops", "ZigMa, half the rate", *RIVALS["ZigMa"], rate_of="ZigMa", lower=1),
)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured, by the keys of the runs."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def next_runs(row: Row, results: Mapping[str, Mapping[str, Any]], scale: Scale = FULL) -> list[Run]:
    """The runs that a row lacks and that can be begun; none while another row's learning rate is waited for.

    Args:
        row: of the matrix.
        results: what was measured, by the keys of the runs.
        scale: length of the runs.
    """
    if best_rate(row, results, scale) is None and row.rate_of is None:
        found = rates_tried(row, results, scale)
        return [Run(row=row, rate=r, seed=SEEDS[0], steps=scale.rate_steps) for r in rates_to_try(found)]
    return [run for run in final_runs(row, results, scale) if not is_done(run, results)]


def final_runs(row: Row, results: Mapping[str, Mapping[str, Any]], scale: Scale = FULL) -> list[Run]:
    """The runs of a row that are compared with others, one a seed; none before its learning rate is settled."""
    rate = best_rate(row, results, scale)
    return (
        [] if rate is None else [Run(row=row, rate=rate, seed=seed, steps=scale.steps * row.length) for seed in SEEDS]
    )


def is_done(run: Run, results: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a run was taken to its length, or broke off because its numbers were no longer finite."""
    found = results.get(run.key)
    return found is not None and ("diverged" in found or found["steps"] >= run.steps)


def best_rate(row: Row, results: Mapping[str, Mapping[str, Any]], scale: Scale = FULL) -> float | None:
    """The learning rate of a row, once it is settled."""
    if row.rate_of is not None:
        found = ("rivals", row.data, row.path, row.rate_of)
        whose = next(other for other in ROWS if (other.group, other.data, other.path, other.name) == found)
        rate = best_rate(whose, results, scale)
        return None if rate is None else LADDER[max(0, LADDER.index(rate) - row.lower)]
    found = rates_tried(row, results, scale)
    return None if rates_to_try(found) else min(found, key=lambda rate: found[rate])


def rates_tried(row: Row, results: Mapping[str, Mapping[str, Any]], scale: Scale = FULL) -> dict[float, float]:
    """The held-out loss after `rate_steps` at every learning rate that was tried; infinite where it diverged.

    So early, samples are poor: their Fréchet distance hangs on how they are, and the loss tells rates apart better.
    """
    found = {}
    for rate in LADDER:
        result = results.get(Run(row=row, rate=rate, seed=SEEDS[0], steps=scale.rate_steps).key)
        if result is not None:
            at = {point["step"]: point["held_out_loss"] for point in result["curve"]}
            found[rate] = at.get(scale.rate_steps, math.inf)
    return found


def rates_to_try(found: Mapping[float, float]) -> list[float]:
    """Which learning rates are still to be tried; none where the best has a neighbour on both sides."""
    if missing := [rate for rate in FIRST_RATES if rate not in found]:
        return missing
    best = LADDER.index(min(found, key=lambda rate: found[rate]))
    beside = (LADDER[i] for i in (best - 1, best + 1) if 0 <= i < len(LADDER))
    return [rate for rate in beside if rate not in found]
