"""Everything that a user may want to replace is replaced from outside the package: the pages of the guide run.

A page of `docs/extend` holds one script of at most 40 lines of code, which ends in assertions of its own.
"""

import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs" / "extend").glob("*.md"))
MOST_LINES = 40


def code_of(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "index"], ids=lambda page: page.stem)
def test_a_page_runs_from_outside_the_package(page, tmp_path, monkeypatch):
    code = code_of(page)
    lines = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert 0 < len(lines) <= MOST_LINES, f"{page.name}: {len(lines)} lines of code"
    assert "assert " in code, f"{page.name}: nothing is asserted"
    assert not re.search(r"wavemamba[\w.]*\._|import _", code), f"{page.name}: reaches for a private name"
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page.name, "exec"), {"__name__": f"extend_{page.stem}"})
