"""What sources of picture files share: a look at every file before the first step."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import IO

from PIL import Image

from wavemamba.data.base import ExampleSource, Findings, fault_of

_AT_ONCE = 64  # pictures that a thread takes at a time, at most
_WAITING = 16  # times 64 pictures a thread: what a signal has to wait for
_THREADS_THAT_WAIT = 16  # a quick look waits for the disk
_ENDS = {
    "GIF": b";",
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",
    "PNG": b"\0\0\0\0IEND\xae\x42\x60\x82",
}
_LENGTHS = {"BMP": (2, 0), "WEBP": (4, 8)}  # where 4 bytes give the file's length, and what has to be added
_TIFF_PLACES = ((273, 279), (324, 325))  # offsets and lengths of strips, of tiles


class PictureSource(ExampleSource):
    """A source whose examples are picture files; several threads may read it at once.

    Attributes:
        read_up_to: `look` reads every picture of a source that has at most so many, and otherwise those alone whose
            header or end is not what their format demands.
    """

    read_up_to: int = 20_000

    @abstractmethod
    def opened(self, index: int) -> AbstractContextManager[IO[bytes]]:
        """The file of picture `index`, which can be read and sought in."""

    def look(self, indices: Sequence[int], *, thorough: bool = False) -> Findings:
        """Look for pictures that cannot be read, see `ExampleSource.look`."""
        if thorough or len(self) <= self.read_up_to:
            return Findings("by reading each", _faults(indices, self._fault, os.cpu_count() or 1))
        return Findings(
            "by header and end of each file, and by reading what ends otherwise than it should",
            _faults(indices, self._fault_at_a_glance, _THREADS_THAT_WAIT),
        )

    def _fault(self, index: int) -> str | None:
        return fault_of(self.example, index)

    def _fault_at_a_glance(self, index: int) -> str | None:
        try:
            with self.opened(index) as file:
                whole = seems_whole(file)
        except Exception:  # Pillow raises whatever comes up; what it is, reading says
            whole = False
        return None if whole else self._fault(index)


def seems_whole(file: IO[bytes]) -> bool:
    """Whether the header of a picture can be read and its end is what its format demands.

    A picture of which this is true may be damaged inside; one of which it is not true may be readable.
    """
    image = Image.open(file)
    form = image.format or ""
    size = _size(file)
    if form in _ENDS:
        file.seek(max(0, size - len(_ENDS[form])))
        return file.read(len(_ENDS[form])) == _ENDS[form]
    if form in _LENGTHS:
        start, more = _LENGTHS[form]
        file.seek(start)
        return int.from_bytes(file.read(4), "little") + more == size
    if form == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]  # which TIFF images have
        pieces = [pair for one in _TIFF_PLACES for pair in zip(*(tags.get(tag, ()) for tag in one), strict=True)]
        return bool(pieces) and max(start + length for start, length in pieces) <= size
    return False


def _size(file: IO[bytes]) -> int:
    file.seek(0, os.SEEK_END)
    return file.tell()


def _faults(indices: Sequence[int], fault: Callable[[int], str | None], threads: int) -> dict[int, str]:
    """Index and reason of those for which `fault` gives one."""

    def of(some: Sequence[int]) -> list[tuple[int, str]]:
        return [(index, why) for index in some if (why := fault(index)) is not None]

    found: dict[int, str] = {}
    taken = _AT_ONCE * _WAITING * threads
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for start in range(0, len(indices), taken):
            block = indices[start : start + taken]
            share = min(_AT_ONCE, -(-len(block) // threads))
            for part in pool.map(of, [block[i : i + share] for i in range(0, len(block), share)]):
                found.update(part)
    return found
