"""Python threads that run a kernel where PyTorch's own cannot: after a fork, or without its OpenMP library."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

Compiled: TypeAlias = Callable[[int], object]
"""Takes the address of a job."""


class _Work:
    """One call of a kernel on the pool."""

    def __init__(self, function: Compiled, job: int) -> None:
        self._function, self._job = function, job
        self._helpers = 0
        self._closed = False
        self._changed = threading.Condition()

    def help(self) -> None:
        """Take items along with the others; nothing where the caller has already left."""
        with self._changed:
            if self._closed:
                return
            self._helpers += 1
        try:
            self._function(self._job)
        finally:
            with self._changed:
                self._helpers -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Wait for the items that helpers took; late ones find the work closed."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._helpers == 0)


class Pool:
    """Daemon threads that help; the caller always works too, so a call ends even where all of them are busy."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Work] = SimpleQueue()
        self._threads = 0
        self._lock = threading.Lock()

    def run(self, function: Compiled, job: int, threads: int) -> None:
        """Call a compiled function on so many threads, the calling one among them; returns when all came back.

        An exception that hits the calling thread, for example of a signal handler, is raised only then, because the
        others still write into the caller's buffers.
        """
        with self._lock, contextlib.suppress(RuntimeError):  # no more threads to be had: those that there are help
            while self._threads < threads - 1:
                name = f"wavemamba-{self._threads + 1}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
                self._threads += 1
        work = _Work(function, job)
        interruption: BaseException | None = None
        try:
            for _ in range(threads - 1):
                self._queue.put(work)
            function(job)
        finally:
            while True:
                try:
                    work.close()
                    break
                except BaseException as error:  # raised below, once nobody writes any more
                    interruption = error
        if interruption is not None:
            raise interruption

    def _serve(self) -> None:
        while True:
            self._queue.get().help()
