"""A hash of files that is cheap for many and large ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from wavemamba.errors import DataError

WHOLE = 256 * 2**20
PIECE = 4096
PIECES = 16384


def content_digest(files: Sequence[Path]) -> str:
    """SHA-256 of the sizes of all files and of their content, in the order given; names and times play no part.

    Up to 256 MiB in all, every byte is read. Beyond that, the sizes of all files and at most 16,384 pieces of 4 KiB,
    evenly spread over the bytes of all of them: a compressed picture that is painted over changes its size, but one
    byte changed in place may go unseen.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        sizes = [path.stat().st_size for path in files]
        total = sum(sizes)
        digest.update(",".join(map(str, sizes)).encode())
        step = 0 if total <= WHOLE else total / PIECES
        start = 0
        next_piece = 0.0
        for path, size in zip(files, sizes, strict=True):
            if not step:
                digest.update(path.read_bytes())
            elif next_piece < start + size:
                with path.open("rb") as file:
                    while next_piece < start + size:
                        file.seek(int(next_piece - start))
                        digest.update(file.read(PIECE))
                        next_piece += step
            start += size
    except OSError as error:
        raise DataError(f"{error.filename}: expected a file that can be read ({error.strerror})") from error
    return digest.hexdigest()
