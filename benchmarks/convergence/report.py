"""Draw the figures of the study and write docs/results.md from the committed JSON, with findings.md at its head.

python benchmarks/convergence/report.py
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plots
from curves import CONFIDENCE, Interval, Lead, Measured, by_seed, lead, measured, ratio_interval
from judge import JUDGES
from table import (
    ABLATED,
    FULL,
    LADDER,
    QUESTIONS,
    ROWS,
    SEEDS,
    Row,
    final_runs,
    is_done,
    rates_tried,
    read_results,
)

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGE, IMAGES = DOCS / "results.md", DOCS / "images"
FINDINGS = HERE / "findings.md"
BASE, RIVAL = "DiMSUM", "DiT"
DATA = {
    "digits": "scikit-learn's digits, 8 x 8",
    "mnist": "MNIST, 28 x 28 with a margin of 2 pixels",
    "crops": "crops of photographs, 32 x 32 RGB",
}
WORTH_WHILE = 0.95  # of the seconds a step: what saves less is no reason to leave the paper's choice
SHARES = (1 / 2, 2 / 3, 5 / 6)  # of a run: what the base has reached there are the distances that are timed

INTRODUCTION = """
# What converges faster

The claim of the DiMSUM paper is that its models need fewer training steps than DiT, SiT, ZigMa and DiffuSSM. This page
measures that on small real pictures, with small models made from the same parts: equal parameters (within 5%), equal
data in equal order, equal noise and times, equal objective, each model at the learning rate that suits it best, {seeds}
seeds. `benchmarks/convergence/` holds the matrix (`table.py`), one JSON and log a run (`results/`), and the script that
writes this page and its figures from them (`report.py`).
"""
HOW = """
## How it is measured, and what that leaves open

- **Runs**: {scale.steps} steps of batch {scale.batch_size}, AdamW without weight decay, constant learning rate after
  100 steps of warm-up, gradients clipped to 2, velocity prediction, averaged weights (decay 0.998 with warm-up), 10% of
  the labels dropped. Width 64, 64 tokens (8 x 8). Learning rates are compared by the held-out loss of the
  first seed after {scale.rate_steps} steps, in factors of two, until the best has a worse one on both sides.
- **Judging**: {scale.samples} samples of the averaged model, of the classes that the reference has, the same noise
  for all models, without guidance, {scale.solver_steps} steps of Heun's solver. A small classifier, fitted on real
  pictures that no model saw, gives the features of Fréchet distance, precision and recall, and reads the class
  (`benchmarks/convergence/judge.py`, weights in `benchmarks/convergence/judges/`). The distances are those of these
  features: they are not to be compared with an FID in Inception's.
- **Seconds and FLOPs** a step are measured for all models in one run (`cost.py`), on one thread in seconds of the
  processor, and multiplied with the steps: what else the machine did during a run has no say in them.
- **Limits**: models of half a million parameters, pictures of at most 32 x 32 pixels, some thousands of them, and runs
  of minutes. Which scan, transform or fusion wins at 256 x 256 after days on GPUs is another question.
"""

Results = Mapping[str, Mapping[str, Any]]
Costs = Mapping[str, Mapping[str, Mapping[str, float]]]


def page(results: Results, costs: Costs, findings: str = "") -> str:
    """The text of docs/results.md; the findings are written by hand, and their numbers stand in its tables."""
    parts = [INTRODUCTION.format(scale=FULL, seeds=len(SEEDS)), findings]
    for rows in _sections():
        parts += _rivals(rows, results, costs.get(rows[0].data, {}))
    parts += _variants(results, costs.get(ABLATED, {}))
    parts += _missing(results)
    parts.append(HOW.format(scale=FULL, seeds=len(SEEDS)))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _sections() -> list[list[Row]]:
    """The rows that are compared with each other; the variants have a part of their own."""
    by = {row.key: (row.data, row.path, row.group) for row in ROWS if row.group != "variants"}
    return [[row for row in ROWS if by.get(row.key) == section] for section in dict.fromkeys(by.values())]


def _rivals(rows: Sequence[Row], results: Results, costs: Mapping[str, Mapping[str, float]]) -> list[str]:
    found = [runs for row in rows if (runs := measured(row, results))]
    tried = _tried(rows, results)
    if not found and not tried:
        return []
    data, path = rows[0].data, rows[0].path
    real = real_scores(data)
    longer = f", runs {rows[0].length} times as long" if rows[0].length > 1 else ""
    parts = [
        f"## {DATA[data]}, {path.upper() if path == 'gvp' else path} path{longer}",
        f"{real['pictures']['train']:,} pictures to train on, {real['pictures']['judge']:,} for the judge, "
        f"{real['pictures']['reference']:,} as reference. Real pictures, as many as there are samples, have a Fréchet "
        f"distance of {real['training_pictures']['frechet']:.2f} to the reference: no model is expected below that.",
    ]
    if found:
        curves = f"![Fréchet distance against steps, seconds and FLOPs](images/{_figure('curves', rows[0])})"
        parts += [curves, _scores(found, real), _leads(found, _longest(RIVAL, rows[0], results), costs)]
    if tried:
        rates = f"![Held-out loss against the learning rate](images/{_figure('rates', rows[0])})"
        parts += ["### Learning rates", rates, _rates(tried)]
    return [part for part in parts if part]


def _tried(rows: Sequence[Row], results: Results) -> dict[str, dict[float, float]]:
    """The held-out losses by learning rate of the rows that look for their own."""
    found = {row.name: rates_tried(row, results) for row in rows if row.rate_of is None}
    return {name: rates for name, rates in found.items() if rates}


def _rates(tried: Mapping[str, Mapping[float, float]]) -> str:
    rates = [rate for rate in LADDER if any(rate in found for found in tried.values())]
    rows = [["", *(f"{rate:g}" for rate in rates)]]
    for name, found in tried.items():
        cells = ["" if rate not in found else f"{found[rate]:.3f}".replace("inf", "diverged") for rate in rates]
        rows.append([name, *cells])
    note = (
        f"*Held-out loss after {FULL.rate_steps} steps of the first seed: it chooses the rate. So early, samples are "
        "poor, and their Fréchet distance tells rates apart less well.*"
    )
    return f"{_table(rows)}\n\n{note}"


def _scores(found: Sequence[Measured], real: Mapping[str, Any]) -> str:
    heads = ("", "parameters", "learning rate", "seeds", "Fréchet distance", "precision", "recall", "read as asked")
    rows = [[*heads, "held-out loss", "nearest training picture"]]
    for runs in found:
        scores = [_shown(runs.end(score)) for score in ("frechet", "precision", "recall", "read_as_asked")]
        more = [_shown(runs.end("held_out_loss"), 3), _shown(runs.end("nearest_training_picture"))]
        of = runs.runs[0]
        rows.append([runs.row.name, f"{of['parameters']:,}", f"{runs.rate:g}", runs.seeds, *scores, *more])
    train, reference = real["training_pictures"], real["reference"]
    own = [f"{train[score]:.2f}" for score in ("frechet", "precision", "recall", "read_as_asked")]
    rows.append(["real pictures", "", "", "", *own, "", f"{reference['nearest_training_picture']:.2f}"])
    note = (
        f"*After {found[0].steps[-1]} steps; means over the seeds and, in brackets, their {CONFIDENCE:.0%} interval, "
        "by logarithms but for precision, recall and reading. Nearest training picture: the median distance in pixels; "
        "that of real pictures is the reference's, so that models far below it repeat what they were trained on.*"
    )
    return f"{_table(rows)}\n\n{note}"


def _base(found: Sequence[Measured]) -> Measured | None:
    """The whole model among what is compared."""
    return next((runs for runs in found if runs.row.name == BASE), None)


def _measured_most(found: Sequence[Measured]) -> Measured | None:
    """The whole model at the rate at which the fewest of its runs diverged."""
    base = _base(found)
    same = [runs for runs in found if base and (runs.row.model, runs.row.options) == (base.row.model, base.row.options)]
    return max(same, key=lambda runs: len(runs.runs), default=None)


def _longest(name: str, beside: Row, results: Results) -> Measured | None:
    """The longest runs of a model on the data and the path of a row: the others are their beginning."""
    same = [row for row in ROWS if (row.name, row.data, row.path) == (name, beside.data, beside.path)]
    found = [runs for row in same if row.group != "variants" and (runs := measured(row, results))]
    return max(found, key=lambda runs: (len(runs.runs), runs.row.length), default=None)


def _leads(found: Sequence[Measured], rival: Measured | None, costs: Mapping[str, Mapping[str, float]]) -> str:
    base = _measured_most(found)
    if base is None or rival is None:
        return ""
    others = [runs for runs in found if runs.row.name != RIVAL]
    moments = [round(share * FULL.steps) for share in SHARES]
    distances = [base.mean(moment, "frechet").mean for moment in moments]
    rows = [["", *(f"to {distance:.2f}" for distance in distances), "seconds a step", "GFLOP a step"]]
    for runs in [rival, *others]:
        cells = ["1" if runs is rival else _lead(lead(runs, rival, distance)) for distance in distances]
        cost = costs.get(runs.row.name)
        rows.append([runs.row.name, *cells, *(["", ""] if cost is None else _cost(cost))])
    note = (
        f"*How many times more steps {RIVAL} takes to a distance than the model of the line, with the {CONFIDENCE:.0%} "
        f"interval over seeds; the distances are those that {base.row.name} has after {_listed(moments)} steps; of "
        f"{RIVAL} the runs of {rival.steps[-1]:,} steps are read. At least: it did not get there within them, and "
        "their length is put in the place of its steps. In seconds the ratio is this one times that of the seconds a "
        "step.*"
    )
    sentences = [_sentence(runs, rival, distances[-1], costs) for runs in others]
    return "\n\n".join([_table(rows), note, *filter(None, sentences)])


def _sentence(runs: Measured, rival: Measured, distance: float, costs: Mapping[str, Mapping[str, float]]) -> str:
    found = lead(runs, rival, distance)
    if found is None:
        return ""
    ratio, least = found.ratio, "at least " if found.at_least else ""
    low = f" (between {ratio.low:.2f} and {ratio.high:.2f})" if ratio.count > 1 else " (one seed)"
    text = f"To {distance:.2f}, {RIVAL} takes {least}{ratio.mean:.2f} times the steps of {runs.row.name}{low}"
    if {runs.row.name, RIVAL} <= costs.keys():
        seconds, flops = (costs[RIVAL][cost] / costs[runs.row.name][cost] for cost in ("seconds", "GFLOP"))
        text += f", {least}{ratio.mean * seconds:.2f} times its seconds and {least}{ratio.mean * flops:.2f} its FLOPs"
    return text + "."


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _variants(results: Results, costs: Mapping[str, Mapping[str, float]]) -> list[str]:
    base, found = _measured_variants(results)
    if base is None or not found:
        return []
    rows = [["", "parameters", "seeds", "Fréchet distance", f"times {BASE}'s", "held-out loss", "seconds a step"]]
    for runs in [base, *found]:
        ratio = "1" if runs is base else _shown(_paired_ratio(runs, base))
        cost = costs.get(runs.row.name)
        seconds = "" if cost is None else f"{cost['seconds']:.3f}"
        count, loss = f"{runs.runs[0]['parameters']:,}", _shown(runs.end("held_out_loss"), 3)
        rows.append([runs.row.name, count, runs.seeds, _shown(runs.end("frechet")), ratio, loss, seconds])
    return [
        f"## Variants of {BASE} on {DATA[ABLATED]}",
        f"Each differs from {BASE} in what its name says. All have the same seeds and one rate, {base.rate:g}: "
        "the best one of the whole model lies next to those at which it diverges. The ratio of distances is taken seed "
        "by seed.",
        f"![Fréchet distance of the variants](images/{_figure('variants', found[0].row)})",
        _table(rows),
        *_picks(base, found, costs),
    ]


def _picks(base: Measured, found: Sequence[Measured], costs: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Which option to take, question by question; of those alone that more than one seed speaks for."""
    names = {runs.row.name: runs for runs in found if len(by_seed(runs, base)) > 1}
    rows = [["", "the paper's choice", "better", "no difference found", "worse", "take"]]
    for question, (choice, variants) in QUESTIONS.items():
        ratios = {name: _paired_ratio(names[name], base) for name in variants if name in names}
        if not ratios:
            continue
        better = [name for name, ratio in ratios.items() if ratio.high < 1]
        worse = [name for name, ratio in ratios.items() if ratio.low > 1]
        equal = [name for name in ratios if name not in (*better, *worse)]
        cells = [", ".join(_with_time(name, costs) for name in group) for group in (better, equal, worse)]
        cheaper = {name: _times_time(name, costs) for name in equal}
        fast = min(cheaper, key=lambda name: cheaper[name], default="")
        if better:
            take = min(better, key=lambda name: ratios[name].mean)
        elif fast and cheaper[fast] < WORTH_WHILE:
            take = f"{choice}; {fast} where time counts"
        else:
            take = choice
        rows.append([question, choice, *cells, take])
    if len(rows) == 1:
        return []
    note = (
        f"*Better and worse: the {CONFIDENCE:.0%} interval of the ratio of distances lies on one side of 1; of so many "
        f"ratios one in twenty does so by chance. In brackets: the seconds of a step as a multiple of {BASE}'s.*"
    )
    return ["### Which option to take, from this table alone", _table(rows), note]


def _times_time(name: str, costs: Mapping[str, Mapping[str, float]]) -> float:
    """The seconds of a variant's step as a multiple of the whole model's; NaN where they were not measured."""
    return costs[name]["seconds"] / costs[BASE]["seconds"] if {name, BASE} <= costs.keys() else math.nan


def _with_time(name: str, costs: Mapping[str, Mapping[str, float]]) -> str:
    times = _times_time(name, costs)
    return name if math.isnan(times) else f"{name} ({times:.2f})"


def _measured_variants(results: Results) -> tuple[Measured | None, list[Measured]]:
    found = [runs for row in ROWS if row.group == "variants" and (runs := measured(row, results))]
    base = _base(found)
    return base, [runs for runs in found if runs is not base]


def _paired_ratio(runs: Measured, base: Measured) -> Interval:
    ends = [(own["curve"][-1]["frechet"], other["curve"][-1]["frechet"]) for own, other in by_seed(runs, base)]
    return ratio_interval([own / other for own, other in ends])


def _missing(results: Results) -> list[str]:
    lacking = []
    for row in ROWS:
        done = sum(is_done(run, results) for run in final_runs(row, results))
        if done < len(SEEDS):
            path = f"{row.path}, {row.length} times as long" if row.length > 1 else row.path
            name = row.name if row.group != "variants" else f"{row.rate_of}, {row.name}"
            lacking.append(f"| {name} | {DATA[row.data]} | {path} | {done} of {len(SEEDS)} |")
    if not lacking:
        return []
    head = ["| model | data | path | seeds measured |", "|---|---|---|---|"]
    text = "`python benchmarks/convergence/study.py` goes on with these, in this order; they are not compared yet."
    return ["## What is not measured yet", text, "\n".join(head + lacking)]


def _lead(found: Lead | None) -> str:
    if found is None:
        return "not within the run"
    return f"at least {found.ratio.mean:.2f}" if found.at_least else _shown(found.ratio)


def _cost(cost: Mapping[str, float]) -> list[str]:
    return [f"{cost['seconds']:.3f}", f"{cost['GFLOP']:.2f}"]


def _shown(found: Interval, digits: int = 2) -> str:
    if found.count < 2:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f}\N{EN DASH}{found.high:.{digits}f})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _figure(what: str, row: Row) -> str:
    longer = "-long" if row.length > 1 else ""
    return f"convergence-{what}-{row.data}-{row.path}{longer}.png"


def real_scores(data: str) -> dict[str, Any]:
    """What real pictures score."""
    return json.loads((JUDGES / f"{data}.json").read_text())


def read_costs(path: Path) -> Costs:
    """Seconds and GFLOP a step by data and contender; none where they were not measured."""
    costs: dict[str, dict[str, Mapping[str, float]]] = {}
    for row in json.loads(path.read_text())["rows"] if path.exists() else []:
        costs.setdefault(row["data"], {})[row["name"]] = row
    return costs


def draw(results: Results, costs: Costs, folder: Path) -> None:
    """Write every figure that the page shows."""
    for rows in _sections():
        if found := [runs for row in rows if (runs := measured(row, results))]:
            cost, floor = costs.get(rows[0].data, {}), real_scores(rows[0].data)["training_pictures"]["frechet"]
            plots.save(plots.curves(found, cost, floor), folder / _figure("curves", rows[0]))
        if tried := _tried(rows, results):
            plots.save(plots.learning_rates(tried), folder / _figure("rates", rows[0]))
    base, variants = _measured_variants(results)
    if base is not None and variants:
        plots.save(plots.variants(base, variants), folder / _figure("variants", variants[0].row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--costs", type=Path, default=HERE / "cost.json")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--images", type=Path, default=IMAGES)
    options = parser.parse_args()
    results, costs = read_results(options.results), read_costs(options.costs)
    draw(results, costs, options.images)
    options.page.write_text(page(results, costs, FINDINGS.read_text()))


if __name__ == "__main__":
    main()
