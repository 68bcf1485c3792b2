"""Draw the committed results for the documentation: docs/images/*.png.

python benchmarks/plots.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from common import RESULTS

IMAGES = Path(__file__).parent.parent / "docs" / "images"
OURS, LIMIT, OTHER = "#1f6f8b", "#9aa5b1", "#d1495b"


def rows(name: str) -> list[dict[str, Any]]:
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def growth() -> plt.Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    data = rows("cpu-growth")
    tokens = [row["tokens"] for row in data]
    axes.plot(tokens, [row["mixer, us a token"] for row in data], "o-", color=OURS, label="Mamba mixer")
    kept = [row["mixer, us a token"] for row in rows("cpu-growth-kept-memory")]
    axes.plot(tokens, kept, "o:", color=OURS, label="Mamba mixer, memory kept by the allocator")
    measured = [(row["tokens"], row["attention, us a token"]) for row in data if row["attention, us a token"]]
    axes.plot(*zip(*measured, strict=True), "s--", color=OTHER, label="self-attention")
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="microseconds a token")
    axes.set_xticks(tokens, [f"{t:,}" for t in tokens], minor=False)
    axes.set_ylim(10, 500)
    axes.set_yticks([10, 20, 50, 100, 200, 500], ["10", "20", "50", "100", "200", "500"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.set_title("Cost per token, width 512, batch 1, two CPU threads")
    return figure


def model() -> plt.Figure:
    figure, panels = plt.subplots(1, 2, figsize=(6.4, 2.8), layout="constrained")
    wide = [row for row in rows("cpu-model") if row["dtype"] == "float32"]
    for axes, row in zip(panels, wide, strict=True):
        times = [row["products alone"], row["seconds"], row["loop / ours"] * row["seconds"]]
        bars = axes.barh(["products alone", "wavemamba", "reference loop"], times, color=[LIMIT, OURS, OTHER])
        axes.bar_label(bars, [f"{t:.2f} s" for t in times], padding=3)
        axes.set_xlim(0, max(times) * 1.25)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{row['what']}, batch {row['batch']}")
    panels[1].set_yticklabels([])
    return figure


def scan() -> plt.Figure:
    figure, panels = plt.subplots(1, 2, figsize=(6.4, 3.2), layout="constrained")
    data = rows("cpu-scan")
    labels = [f"{'forward' if row['what'] == 'forward' else 'forward + backward'}, B = {row['batch']}" for row in data]
    for axes, ratio, asked, title in (
        (panels[0], "loop / ours", "at least", "plain loop, times slower"),
        (panels[1], "of exp", "limit", "of torch.exp's time"),
    ):
        values = [row[ratio] for row in data]
        ranges = [row[f"{ratio}, range"] for row in data]
        spread = [
            [v - r[0] for v, r in zip(values, ranges, strict=True)],
            [r[1] - v for v, r in zip(values, ranges, strict=True)],
        ]
        axes.barh(labels, values, xerr=spread, color=OURS, ecolor=LIMIT, capsize=3)
        for place, row in enumerate(data):
            axes.plot([row[asked], row[asked]], [place - 0.4, place + 0.4], color=OTHER)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, fontsize=10)
    panels[1].set_yticklabels([])
    return figure


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, draw in {"growth": growth, "model": model, "scan": scan}.items():
        if not (RESULTS / f"cpu-{name}.json").exists():
            print(f"no results yet: benchmarks/{name}.py")
            continue
        draw().savefig(IMAGES / f"{name}.png", dpi=120)
        print(f"written: {IMAGES / name}.png")


if __name__ == "__main__":
    main()
