"""The convergence study: its matrix, its judges, what is read out of its results; and five steps of every row."""

import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "convergence"
MODULES = [path.stem for path in FOLDER.glob("*.py")]


@pytest.fixture(scope="module", autouse=True)
def study_on_path():
    """The scripts import each other by bare names, which no other test should see."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path[:] = before
    for name in (*MODULES, "common"):
        sys.modules.pop(name, None)


def test_five_steps_of_every_row_are_taken_and_judged(tmp_path):
    from study import wanted
    from table import ROWS, SMOKE, read_results

    command = [sys.executable, str(FOLDER / "study.py"), "--smoke", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert wanted(ROWS, read_results(tmp_path / "results"), SMOKE) == []
    found = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")]
    assert len(found) == len(ROWS) == len({row.key for row in ROWS})
    scores = ("frechet", "precision", "recall", "read_as_asked", "nearest_training_picture", "held_out_loss")
    for result in found:
        (point,) = result["curve"]
        assert point["step"] == result["steps"] == 5
        assert all(math.isfinite(point[score]) for score in scores)


def test_a_run_out_of_time_goes_on_to_the_same_result(tmp_path):
    from table import ROWS, SMOKE, Run
    from training import train

    run = Run(row=next(row for row in ROWS if row.data == "digits"), rate=1e-3, seed=0, steps=5)
    key = f"{run.key}.json"
    assert train(run, SMOKE, tmp_path / "a", tmp_path / "whole", math.inf) == "finished"
    while (outcome := train(run, SMOKE, tmp_path / "b", tmp_path / "broken", time.monotonic())) == "stopped":
        assert not (tmp_path / "broken").exists()
    assert outcome == "finished"
    curves = [json.loads((tmp_path / where / key).read_text())["curve"] for where in ("whole", "broken")]
    assert curves[0] == curves[1]


def test_a_run_that_is_no_longer_finite_is_written_down(tmp_path):
    from table import ROWS, SMOKE, Run
    from training import train

    run = Run(row=next(row for row in ROWS if row.name == "DiT"), rate=1e30, seed=0, steps=5)
    assert train(run, SMOKE, tmp_path / "run", tmp_path / "results", math.inf) == "diverged"
    result = json.loads((tmp_path / "results" / f"{run.key}.json").read_text())
    assert "not finite" in result["diverged"] or "NaN" in result["diverged"]
    assert str(tmp_path) not in result["diverged"]


def test_rivals_have_equal_parameters():
    from pictures import load
    from table import ROWS

    from wavemamba import create_model

    counts = {}
    for row in ROWS:
        if row.group == "rivals" and row.path == "gvp" and row.rate_of is None:  # the others explain one of these
            train = load(row.data).train
            channels, *size = train.shape
            model = create_model(
                row.model, img_size=tuple(size), in_chans=channels, num_classes=len(train.classes), **row.options
            )
            counts.setdefault(row.data, {})[row.name] = sum(p.numel() for p in model.parameters())
    for of in counts.values():
        assert all(abs(count / of["DiMSUM"] - 1) < 0.05 for count in of.values()), of


@pytest.mark.parametrize("name", ["digits", "mnist", "crops"])
def test_parts_share_no_picture(name):
    from judge import Judge
    from pictures import load

    parts = load(name)
    pictures = [set(map(bytes, part.images.flatten(1).numpy())) for part in parts]
    assert not any(a & b for a, b in itertools.combinations(pictures, 2))
    for part in parts:
        assert part.images.min() >= -1
        assert part.images.max() <= 1
        assert len(part.labels.unique()) == len(part.classes) == 10
    judge = Judge(name, parts)
    real = json.loads((FOLDER / "judges" / f"{name}.json").read_text())
    assert real["judge"] == judge.sha256
    scores = judge.scores(parts.reference.images, parts.reference.labels)
    assert scores["frechet"] == pytest.approx(0, abs=1e-6)
    assert scores["read_as_asked"] == pytest.approx(real["reference"]["read_as_asked"], abs=0.01)
    noise = torch.rand(parts.reference.images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert judge.scores(noise, parts.reference.labels)["frechet"] > 20 * real["training_pictures"]["frechet"]


def outcome(run, loss):
    from table import FULL

    curve = [{"step": step, "held_out_loss": loss} for step in (FULL.rate_steps, run.steps)]
    return {run.key: {"steps": run.steps, "seed": run.seed, "curve": curve}}


def test_rates_are_tried_until_the_best_lies_between_two():
    from table import FIRST_RATES, LADDER, rates_to_try

    assert rates_to_try({}) == list(FIRST_RATES)
    for best, further in ((FIRST_RATES[0], [LADDER[1]]), (FIRST_RATES[-1], [LADDER[6]]), (FIRST_RATES[1], [])):
        assert rates_to_try({rate: abs(math.log(rate / best)) for rate in FIRST_RATES}) == further
    assert rates_to_try({rate: 1 / rate for rate in LADDER[2:]}) == []  # there is no higher one


def test_seeds_come_after_the_rate_and_variants_after_their_rival():
    from table import FIRST_RATES, FULL, ROWS, SEEDS, final_runs, next_runs

    base = ROWS[0]
    variant, longer = (next(row for row in ROWS if row.group == group) for group in ("variants", "long"))
    assert (base.name, variant.rate_of, longer.rate_of) == ("DiMSUM", "DiMSUM", "DiMSUM")
    results = {}
    assert next_runs(variant, results) == final_runs(base, results) == []
    for run in next_runs(base, results):
        assert (run.seed, run.steps) == (SEEDS[0], FULL.rate_steps)
        results |= outcome(run, abs(math.log(run.rate / FIRST_RATES[1])))
    assert [(run.rate, run.seed, run.steps) for run in next_runs(base, results)] == [
        (FIRST_RATES[1], seed, FULL.steps) for seed in SEEDS
    ]
    assert {run.rate for run in next_runs(longer, results)} == {FIRST_RATES[1]}
    assert {run.rate for run in next_runs(variant, results)} == {FIRST_RATES[0]}
    assert {run.steps for run in next_runs(longer, results)} == {FULL.steps * longer.length}
    for run in next_runs(base, results):
        results |= outcome(run, 0.0 if run.seed == SEEDS[0] else 1.0)
    results[run.key]["diverged"] = "NaN"
    results[run.key]["steps"] = 7
    assert next_runs(base, results) == []


def test_rows_that_are_compared_go_side_by_side():
    from study import wanted
    from table import FULL, ROWS, next_runs

    rows, results = list(ROWS[:2]), {}
    for run in next_runs(rows[0], results):
        results |= outcome(run, abs(math.log(run.rate / 5e-3)))
    todo = wanted(rows, results, FULL)
    assert [run.row for run in todo[:4]] == [rows[1]] * 4, "learning rates come before seeds"
    for run in next_runs(rows[1], results):
        results |= outcome(run, abs(math.log(run.rate / 5e-3)))
    names = [(run.row.name, run.seed) for run in wanted(rows, results, FULL)]
    assert names == [(name, seed) for seed in (0, 1, 2) for name in ("DiMSUM", "DiT")]


def test_a_rate_that_diverged_is_not_the_best():
    from table import ROWS, best_rate, next_runs, rates_tried

    results = {}
    for run in next_runs(ROWS[0], results):
        results |= outcome(run, run.rate)
    worst, *_ = results
    results[worst]["curve"] = []
    results[worst]["diverged"] = "NaN"
    assert math.inf in rates_tried(ROWS[0], results).values()
    assert best_rate(ROWS[0], results) is not None


def test_steps_to_a_distance_are_read_between_the_points():
    from curves import steps_to

    curve = [{"step": step, "frechet": 32 * 2 ** (-step / 100)} for step in (200, 300, 400)]
    assert steps_to(curve, 32 * 2**-2.5) == pytest.approx(250)
    assert steps_to(curve, 2.0) == pytest.approx(400)
    assert steps_to(curve, 1.9) is None  # not reached
    assert steps_to(curve, 9.0) is None  # before the first point


def test_a_lead_is_the_ratio_of_steps_with_its_interval():
    from curves import Measured, interval, lead, ratio_interval
    from scipy import stats
    from table import ROWS

    def runs(speed):
        curves = {seed: [{"step": s, "frechet": 2 ** (-speed * s * f)} for s in (1, 3, 9)] for seed, f in own.items()}
        return Measured(ROWS[0], 1e-3, tuple({"seed": seed, "curve": curve} for seed, curve in curves.items()))

    own = dict.fromkeys(range(3), 1.0)
    theirs = runs(0.5)
    own = {0: 0.9, 1: 1.0, 2: 1.2}
    found = lead(runs(1.0), theirs, 2**-2.2)
    logs = [math.log(2 * factor) for factor in own.values()]
    mean, half = sum(logs) / 3, stats.t.ppf(0.975, 2) * stats.sem(logs)
    assert found.ratio == pytest.approx((math.exp(mean), math.exp(mean - half), math.exp(mean + half), 3))
    assert not found.at_least
    assert lead(runs(1.0), theirs, 2**-20.0) is None, "ours does not get there"
    assert lead(theirs, runs(1.0), 2**-0.6) is None, "theirs is there before it is judged"
    far = lead(runs(3.0), theirs, 2**-8.0)
    assert far.at_least, "theirs does not get there"
    steps = [8 / (3 * factor) for factor in own.values()]
    assert far.ratio.mean == pytest.approx(9 / math.prod(steps) ** (1 / 3))
    assert lead(runs(3.0), theirs, 2**-2.2).at_least, "ours is there before it is judged"
    assert interval([3.0]) == (3.0, -math.inf, math.inf, 1)
    assert ratio_interval([3.0]) == (pytest.approx(3.0), 0.0, math.inf, 1)


def test_the_page_of_results_is_the_one_of_the_committed_results():
    from report import FINDINGS, HERE, PAGE, page, read_costs
    from table import read_results

    results, costs, findings = read_results(HERE / "results"), read_costs(HERE / "cost.json"), FINDINGS.read_text()
    assert PAGE.read_text() == page(results, costs, findings)
    tables = page(results, costs)
    said = set(re.findall(r"\d+\.\d+", findings))
    assert {number for number in said if number not in tables} == set(), "findings are read from the tables"


def test_committed_results_are_of_this_table_and_of_these_judges():
    from report import HERE, real_scores
    from table import FULL, ROWS, Run, read_results

    rows = {row.key: row for row in ROWS}
    for key, result in read_results(HERE / "results").items():
        row = rows[key.rsplit("-rate_", 1)[0]]
        assert key == Run(row=row, rate=result["rate"], seed=result["seed"], steps=result["steps"]).key
        assert (result["model"], result["options"], result["path"]) == (row.model, dict(row.options), row.path)
        assert {**result["scale"], "steps": 0} == {**dataclasses.asdict(FULL), "steps": 0}
        assert result["judge"] == real_scores(row.data)["judge"]
        assert (HERE / "results" / f"{key}.jsonl").exists()


def test_the_page_shows_what_is_measured_and_says_what_is_missing(tmp_path):
    import report
    from table import ROWS, final_runs, next_runs

    results = {}

    def measure(run):
        points = [
            {"step": step, "frechet": 100 / step * (1 + run.seed / 10) * (1 + abs(math.log(run.rate / 5e-3)))}
            for step in range(200, run.steps + 1, 100)
        ]
        more = dict.fromkeys(("precision", "recall", "read_as_asked", "nearest_training_picture"), 0.5)
        curve = [{**point, **more, "held_out_loss": point["frechet"]} for point in points]
        results[run.key] = {"steps": run.steps, "seed": run.seed, "parameters": 5, "curve": curve}

    for run in next_runs(ROWS[0], results):
        measure(run)
    text = report.page(results, {})
    assert "| DiMSUM | 0.847 | 0.500 | 0.847 | 1.193 |" in text, "learning rates are shown before any seed is"
    assert "read as asked" not in text

    measured = ROWS[:2] + tuple(row for row in ROWS if row.group == "variants")[:2]
    for row in measured:
        while runs := next_runs(row, results):
            for run in runs:
                measure(run)
        assert len(final_runs(row, results)) == 3
    costs = {"mnist": {name: {"seconds": 0.5, "GFLOP": 3.0} for name in ("DiMSUM", "DiT")}}
    text = report.page(results, costs)
    assert "DiT takes 1.00 times the steps of DiMSUM (between 1.00 and 1.00), 1.00 times its seconds" in text
    assert "more diverged" not in text
    last = final_runs(ROWS[0], results)[-1].key
    assert "| 2 (1 more diverged) |" in report.page({**results, last: results[last] | {"diverged": "NaN"}}, costs)
    assert text.count("0 of 3 |") == len(ROWS) - len(measured)
    report.draw(results, costs, tmp_path)
    shown = [line.split("(images/")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(shown) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shown)


def test_an_option_is_taken_where_its_interval_says_so_or_its_time():
    import report
    from curves import Measured
    from table import ROWS

    def runs(row, distance):
        ends = [{"seed": seed, "curve": [{"step": 9, "frechet": distance * (1 + seed / 9)}]} for seed in range(3)]
        return Measured(row, 1e-3, tuple(ends))

    base = runs(ROWS[0], 1.0)
    distances = {"fusion swap_k": 0.8, "fusion linear": 1.5, "dct": 1.0, "db2": 2.0}
    found = [runs(row, distances[row.name]) for row in ROWS if row.name in distances]
    costs = {"DiMSUM": {"seconds": 2.0}, "dct": {"seconds": 1.0}}
    title, text, _ = report._picks(base, found, costs)
    assert title.startswith("### ")
    lines = text.splitlines()
    assert "| fusion | cross-attention | fusion swap_k |  | fusion linear | fusion swap_k |" in lines
    assert "| transform | Haar |  | dct (0.50) | db2 | Haar; dct where time counts |" in lines
    assert len(lines) == 4
    alone = [Measured(runs.row, runs.rate, runs.runs[:1]) for runs in found]
    assert report._picks(base, alone, costs) == []
