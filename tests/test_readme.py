"""The README's examples run, and its numbers are the code's."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from wavemamba import create_model
from wavemamba.commands import sample, train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code, capsys):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    claimed, printed = re.findall(r"torch\.Size\(\[.*?\]\)", code), capsys.readouterr().out
    assert all(text in printed for text in claimed)


def test_a_block_is_in_a_network_in_ten_lines():
    (example,) = (code for code in EXAMPLES if "WaveletMambaBlock" in code)
    assert len([line for line in example.splitlines() if line.strip()]) == 10


def test_training_and_sampling_run_as_they_stand_there(tmp_path, monkeypatch):
    said = dict(re.findall(r"python -m wavemamba\.(train|sample) (--(?:data|model) .*)", README))
    monkeypatch.chdir(tmp_path)
    assert train.main([*shlex.split(said["train"]), "--epochs=0.02", "--sample-steps=1", "--quiet"]) == 0
    assert sample.main([*shlex.split(said["sample"]), "--solver=euler", "--steps=1", "--per-class=1"]) == 0
    assert Path("digits.png").stat().st_size > 0


@pytest.mark.parametrize(("name", "count"), re.findall(r"`(dimsum_\w+)` \|.*\| ([\d,]+) \|", README))
def test_parameter_counts(name, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model(name).parameters()) == int(count.replace(",", ""))


PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def links_of(page: str) -> list[Path]:
    """The files of this repository that a page links to."""
    source = ROOT / page
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", source.read_text())
    return [(source.parent / target.strip()).resolve() for target in targets]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in links_of(page):
        assert target.exists(), f"{page} links to {target.relative_to(ROOT)}"


def test_every_page_is_linked_from_the_readme_or_from_a_page_that_it_links():
    pages = {(ROOT / page).resolve(): page for page in PAGES}
    first = {target for target in links_of("README.md") if target in pages}
    second = {target for page in first for target in links_of(pages[page])}
    assert set(pages) - {(ROOT / "README.md").resolve()} <= first | second


def test_files_that_pages_name_are_there():
    for page in PAGES:
        for name in re.findall(r"`((?:wavemamba|tests|benchmarks|examples|docs)/[\w./]*)`", (ROOT / page).read_text()):
            assert (ROOT / name).exists(), f"{page} names {name}"


def results(name: str) -> list[dict]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]


def spread(row: dict, ratio: str, digits: int) -> str:
    least, most = row[f"{ratio}, range"]
    return f"{row[ratio]:.{digits}f} ({least:.{digits}f}\N{EN DASH}{most:.{digits}f})"


def test_tables_of_the_performance_page_are_the_committed_results():
    page = (ROOT / "docs" / "performance.md").read_text()
    rows = [
        f"| {row['what']} | {row['dtype']} | {row['batch']} | {row['seconds']:.2f} s | "
        f"{row['products alone']:.2f} s | {row['of products']:.2f} | "
        + (f"{row['loop / ours']:.2f} times slower |" if "loop / ours" in row else "|")
        for row in [*results("cpu-model"), *results("cpu-model-spinning")]
    ]
    for row in results("cpu-scan"):
        what = {"step": "forward + backward"}.get(row["what"], row["what"])
        spreads = [spread(row, "of exp", 2), spread(row, "loop / ours", 0), spread(row, "pscan / ours", 0)]
        rows.append(f"| {what} | {row['batch']} | {row['ms']:.2f} | {' | '.join(spreads)} |")
    for row, kept in zip(results("cpu-growth"), results("cpu-growth-kept-memory"), strict=True):
        ours, attention = "mixer, us a token", row["attention, us a token"]
        beside = "" if attention is None else f"{attention:.1f}"
        rows.append(f"| {row['tokens']:,} | {row[ours]:.1f} | {kept[ours]:.1f} | {beside} |")
    assert [row for row in rows if row not in page] == []


def test_ratios_of_the_readme_are_the_committed_results():
    scan = {(row["what"], row["batch"]): round(row["loop / ours"]) for row in results("cpu-scan")}
    said = "takes a {}th to a {}th of the time of mamba-ssm's plain loop forward, a {}st to a {}th forward and backward"
    model = {row["what"]: row["of products"] for row in results("cpu-model") if row["dtype"] == "float32"}
    more = "takes {:.2f} times its own matrix products alone (training step: {:.2f})"
    text = " ".join(README.split())
    assert said.format(*(scan[what, batch] for what in ("forward", "step") for batch in (1, 4))) in text
    assert more.format(model["forward"], model["training step"]) in text


def test_every_file_of_results_is_named_on_the_performance_page():
    page = (ROOT / "docs" / "performance.md").read_text()
    assert [path.name for path in (ROOT / "benchmarks" / "results").glob("*.json") if path.name not in page] == []
