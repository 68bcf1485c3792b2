"""The README's examples run, and its numbers are the code's."""

import re
from pathlib import Path

import pytest
import torch

from wavemamba import create_model

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
