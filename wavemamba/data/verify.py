"""Every example looked at before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from wavemamba.data.base import ExampleSource, Findings, Item, Part, Source, StreamedSource, fault_of
from wavemamba.errors import ConfigError, DataError
from wavemamba.names import choose

LOOKS = ("auto", "all", "none")
"""How a source is looked at: as it does by default, by reading every example, or not at all."""
_LISTED = 20
Result = TypeVar("Result")


def verified(source: Source, *, verify: str = "auto", skip_unreadable: bool = False) -> Source:
    """The source, without the examples that cannot be read.

    Args:
        source: what to look at.
        verify: "auto": as `source.look` does by default; "all": read every example; "none": a damaged one is found
            when its turn comes.
        skip_unreadable: read every example, and leave out what cannot be read; the summary says how many. Of a stream
            each row is read when its turn comes.

    Raises:
        DataError: examples cannot be read and are not to be skipped, or none can; all are listed.
        ConfigError: `verify` is none of these words, "none" beside `skip_unreadable`, or "all" of a stream.
    """
    thorough = thorough_look(source, verify, skip_unreadable)
    findings = Findings()
    if isinstance(source, ExampleSource) and thorough is not None:
        findings = source.look(range(len(source)), thorough=thorough)
    return without_faults(source, findings, skip_unreadable=skip_unreadable)


def thorough_look(source: Source, verify: str, skip_unreadable: bool) -> bool | None:
    """Whether a look has to read every example; None: there is nothing to look at, or nobody asks for it.

    Raises:
        ConfigError: see `verified`.
    """
    verify = choose("verify", verify, LOOKS)
    if verify == "none" and skip_unreadable:
        raise ConfigError("verify: expected 'auto' or 'all' beside skip_unreadable, which looks at all, got 'none'")
    if isinstance(source, ExampleSource):
        return None if verify == "none" else verify == "all" or skip_unreadable
    if verify == "all":
        raise ConfigError("verify: expected 'auto' or 'none' for streamed data, which are read once, got 'all'")
    return None


def without_faults(source: Source, findings: Findings, *, skip_unreadable: bool) -> Source:
    """The source without what a look found, or an error that lists it.

    Raises:
        DataError: see `verified`.
    """
    if isinstance(source, StreamedSource) and skip_unreadable:
        source.skip_unreadable = True
    if not isinstance(source, ExampleSource):
        return source
    count = len(findings.faults)
    if not count:
        return source
    reasons = listed(findings.faults.values())
    if count == len(source):
        raise DataError(f"expected readable examples, all {count} cannot be read:{reasons}")
    if not skip_unreadable:
        raise DataError(
            f"expected {len(source)} readable examples, {count} of them are not; replace or remove them, or "
            f"leave them out with skip_unreadable:{reasons}"
        )
    good = torch.tensor([i for i in range(len(source)) if i not in findings.faults], dtype=torch.int64, device="cpu")
    return Part(source, good, f"{count} unreadable ones left out:{reasons}")


def every(read: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `read` gives for each item.

    Raises:
        DataError: it fails for some; all are listed.
    """
    results: list[Result] = []
    faults = [why for item in items if (why := fault_of(lambda one: results.append(read(one)), item)) is not None]
    if len(faults) > 1:
        raise DataError(f"expected readable files, {len(faults)} are not:{listed(faults)}")
    if faults:
        raise DataError(faults[0])
    return results


def listed(reasons: Iterable[str]) -> str:
    """Different reasons, a line each, the first twenty of them."""
    different = list(dict.fromkeys(reasons))
    more = f"\n  and {len(different) - _LISTED} more" if len(different) > _LISTED else ""
    return "".join(f"\n  {why}" for why in different[:_LISTED]) + more
