"""Every example looked at before the first step."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch

from wavemamba.data.base import ExampleSource, Part
from wavemamba.errors import DataError

LISTED = 20
_AT_ONCE = 4096


def unreadable(source: ExampleSource) -> dict[int, str]:
    """Index and error of every example that cannot be read; all are read, by as many threads as there are cores."""

    def fault(index: int) -> str | None:
        try:
            source.example(index)
        except DataError as error:
            return str(error)
        return None

    faults: dict[int, str] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in range(0, len(source), _AT_ONCE):  # every example waiting in the pool costs a kilobyte
            some = range(start, min(start + _AT_ONCE, len(source)))
            faults.update((index, why) for index, why in zip(some, pool.map(fault, some), strict=True) if why)
    return faults


def verified(source: ExampleSource, *, verify: bool = True, skip_unreadable: bool = False) -> ExampleSource:
    """The source, without the examples that cannot be read.

    Args:
        source: what to look at.
        verify: read every example now; otherwise a damaged one is found when its turn comes.
        skip_unreadable: read every example now, and leave out what cannot be read; the summary says how many.

    Raises:
        DataError: examples cannot be read and are not to be skipped, or none can; all are listed.
    """
    if not verify and not skip_unreadable:
        return source
    faults = unreadable(source)
    if not faults:
        return source
    listed = "\n".join(f"  {why}" for why in list(faults.values())[:LISTED])
    more = f"\n  and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    if len(faults) == len(source):
        raise DataError(f"expected readable examples, all {len(faults)} cannot be read:\n{listed}{more}")
    if not skip_unreadable:
        raise DataError(
            f"expected {len(source)} readable examples, {len(faults)} of them are not; replace or remove them, or "
            f"leave them out with skip_unreadable:\n{listed}{more}"
        )
    good = torch.tensor([i for i in range(len(source)) if i not in faults], dtype=torch.int64, device="cpu")
    return Part(source, good, f"{len(faults)} unreadable ones left out:\n{listed}{more}")
