"""A progress bar, where there is a terminal and tqdm."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(total: int, wanted: bool, about: str | None = None) -> Iterator[Callable[[float], None]]:
    """Show how many of `total` pictures are drawn, and what is to be said of them; yields a function that is told."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # its types are a package of their own
    except ImportError:
        wanted = False
    if not wanted:
        yield lambda done: None
        return
    # disable=None: not where stderr is no terminal.
    with tqdm(total=total, unit="picture", bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]",
              desc=about, disable=None) as bar:  # fmt: skip
        yield lambda done: bar.update(done - bar.n) and None
