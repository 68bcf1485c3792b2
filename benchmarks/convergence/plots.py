"""The figures of docs/results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from curves import Measured
from table import FULL

COLOURS = {"DiMSUM": "#1f6f8b", "DiT": "#d1495b", "SiT": "#edae49", "ZigMa": "#66a182", "DiffuSSM": "#8d6a9f"}


def curves(contenders: Sequence[Measured], costs: Mapping[str, Mapping[str, float]], floor: float) -> plt.Figure:
    """Fréchet distance against steps, seconds and FLOPs: the mean over seeds, bars from the least to the largest."""
    units = [("steps", None, 1.0)]
    if all(contender.row.name in costs for contender in contenders):
        units += [("seconds on one core", "seconds", 1.0), ("TFLOP", "GFLOP", 1e-3)]
    figure, panels = plt.subplots(1, len(units), figsize=(3.6 * len(units), 3.4), layout="constrained", sharey=True)
    for axes, (label, cost, unit) in zip(np.atleast_1d(panels), units, strict=True):
        for contender in contenders:
            name = contender.row.name
            a_step = unit * (1.0 if cost is None else costs[name][cost])
            values = [np.array(contender.at(step, "frechet")) for step in contender.steps]
            means = np.array([contender.mean(step, "frechet").mean for step in contender.steps])
            spread = [means - [value.min() for value in values], [value.max() for value in values] - means]
            where = np.array(contender.steps) * a_step
            axes.errorbar(
                where, means, np.maximum(spread, 0.0), fmt="o-", ms=3, capsize=2, color=COLOURS.get(name), label=name
            )
        axes.axhline(floor, color="#9aa5b1", linestyle="--", linewidth=1, label="real pictures")
        axes.set(xlabel=label, yscale="log")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3, which="both")
    first = np.atleast_1d(panels)[0]
    first.set_ylabel("Fréchet distance")
    first.legend(frameon=False, fontsize=8)
    return figure


def learning_rates(tried: Mapping[str, Mapping[float, float]]) -> plt.Figure:
    """Held-out loss after a third of the steps against the learning rate, of every contender."""
    figure, axes = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    for name, found in tried.items():
        shown = {rate: value for rate, value in found.items() if np.isfinite(value)}
        axes.plot(list(shown), list(shown.values()), "o-", ms=4, color=COLOURS.get(name), label=name)
    rates = sorted({rate for found in tried.values() for rate in found})
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"held-out loss, {FULL.rate_steps} steps")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=8)
    return figure


def variants(base: Measured, contenders: Sequence[Measured]) -> plt.Figure:
    """Fréchet distance at the end: every seed, the mean, and its interval."""
    rows = [base, *contenders]
    figure, axes = plt.subplots(figsize=(6.4, 0.8 + 0.27 * len(rows)), layout="constrained")
    for place, contender in enumerate(reversed(rows)):
        values = contender.at(contender.steps[-1], "frechet")
        mean, low, high, count = contender.end("frechet")
        colour = COLOURS["DiMSUM"] if contender is base else "#555555"
        if count > 1:
            axes.plot([low, high], [place, place], color=colour, linewidth=1)
        axes.plot(values, [place] * count, "|", color=colour, ms=7)
        axes.plot(mean, place, "o", color=colour, ms=4)
    axes.axvline(base.end("frechet").mean, color=COLOURS["DiMSUM"], linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [contender.row.name for contender in reversed(rows)], fontsize=8)
    axes.set(xlabel=f"Fréchet distance after {base.steps[-1]} steps", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, axis="x")
    return figure


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure."""
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
