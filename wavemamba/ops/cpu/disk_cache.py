"""Machine code on disk: files that are whole or ignored, whoever wrote them, and a disk that may be full.

numba's own cache keeps an index beside the code. A file that a crash left empty, cut or full of zeros then fails every
later process, and two processes which write at once, for two kinds of processor, can leave one's code under the other's
name. Here a file is named after all that its code depends on and starts with a checksum of the rest.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from wavemamba.files import write_atomically

_CHECKSUM_BYTES = 4


class DiskCache(FunctionCache):
    """Where numba looks for a function's machine code, and leaves it.

    Args:
        function: to be compiled.
        sources: a digest of the files that the function is made from.

    Raises:
        RuntimeError: there is no folder that can be written.
    """

    def __init__(self, function: Callable[..., Any], sources: int) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]  # numba's has no types
        stem = f"{Path(function.__code__.co_filename).stem}.{function.__name__}"
        self._cache_file: Any = _Files(Path(self.cache_path), stem, sources)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None."""
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]  # as above
        except Exception:  # whatever is wrong with a file, compiling anew replaces it
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function, or warn once."""
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]  # as above
        except OSError as error:
            warn_not_kept(str(error))


class _Files:
    """One file for each key; replaced in one step, so that a reader sees the old one or the new one."""

    def __init__(self, folder: Path, stem: str, sources: int) -> None:
        self._folder, self._stem, self._sources = folder, stem, f"{stem}-{sources:08x}"

    def _path(self, key: Any) -> Path:
        versions = (sys.version_info[:2], numba.__version__, llvmlite.__version__)
        digest = hashlib.sha256(repr((versions, key)).encode()).hexdigest()[:16]
        return self._folder / f"{self._sources}-{digest}.nbc"

    def load(self, key: Any) -> Any:
        """What was saved under a key; None where there is no such file, or one that is damaged."""
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        checksum, data = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        return pickle.loads(data) if checksum == _checksum(data) else None

    def save(self, key: Any, data: Any) -> None:
        """Write a file, and drop those of earlier sources, which nobody will read again."""
        path = self._path(key)
        content = dumps(data)  # type: ignore[no-untyped-call]  # as above
        write_atomically(path, _checksum(content) + content)
        for other in self._folder.glob(f"{self._stem}-*"):
            if not other.name.startswith(self._sources):
                other.unlink(missing_ok=True)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "big")


_warned = False


def warn_not_kept(reason: str) -> None:
    """Say, once a process, that kernels are compiled anew in every process."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"the machine code of the CPU kernels cannot be kept on disk ({reason}), so every process compiles it; "
            "free space there, or name another folder by NUMBA_CACHE_DIR",
            RuntimeWarning,
            stacklevel=2,
        )
