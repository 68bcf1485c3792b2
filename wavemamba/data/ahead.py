"""Reading ahead in a thread, so that a slow network does not hold up the step that is computed."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
_PATIENCE = 0.2  # seconds between two looks at whether anybody still wants what was read


def read_ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """The same items in the same order, at most `depth` of them made in advance; an error comes in its turn.

    Args:
        items: used by the thread alone from the first item on.
        depth: >= 1.
    """
    made: queue.Queue[tuple[Any, BaseException | None, bool]] = queue.Queue(depth)
    unwanted = threading.Event()

    def hand_over(item: Any, error: BaseException | None = None, *, last: bool = False) -> None:
        while not unwanted.is_set():
            with contextlib.suppress(queue.Full):
                made.put((item, error, last), timeout=_PATIENCE)
                return

    def work() -> None:
        try:
            for item in items:
                hand_over(item)
                if unwanted.is_set():
                    return
            hand_over(None, last=True)
        except BaseException as error:  # raised again where the item would have been used
            hand_over(None, error)

    threading.Thread(target=work, name="read ahead", daemon=True).start()
    try:
        while True:
            item, error, last = made.get()
            if error is not None:
                raise error
            if last:
                return
            yield item
    finally:
        unwanted.set()
