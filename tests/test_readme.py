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


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    source = ROOT / page
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", source.read_text()):
        assert (source.parent / target).exists(), f"{page} links to {target}"
