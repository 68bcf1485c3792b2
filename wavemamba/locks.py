"""One job at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
import warnings
from pathlib import Path

from wavemamba.errors import ConfigError

LOCK_FILE = ".lock"


class FolderLock:
    """Keeps a second job out of a folder for as long as the context lasts.

    A POSIX record lock on `.lock` in the folder. The kernel keeps it for this process and drops it when the process
    ends, however it ends: after kill -9 nothing is left that could block a resumption, as a file with a process id
    would. Child processes do not inherit it, so that data loader workers that outlive a kill for some seconds do not
    hold it either. What the file says about its holder serves the error's text alone.

    Two contexts in one process do not exclude one another. Where there are no such locks (Windows, some network file
    systems) a warning says so and the job goes on.

    Args:
        folder: made if needed.
        patience: seconds to wait for a holder that may be ending.
        enabled: whether to lock at all; of many processes, one should.

    Raises:
        ConfigError: on entering, another process holds the lock, or `.lock` is no plain file.
    """

    def __init__(self, folder: str | Path, *, patience: float = 3.0, enabled: bool = True) -> None:
        self.folder = Path(folder)
        self.patience = patience
        self.enabled = enabled
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        if not self.enabled:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(self.folder / LOCK_FILE)
        try:
            self._acquire(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # a full disk stops the job where it writes something that matters
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _acquire(self, descriptor: int) -> None:
        try:
            import fcntl
        except ImportError:
            self._warn("this system has no POSIX locks")
            return
        end = time.monotonic() + self.patience
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    self._warn(str(error))
                    return
            if time.monotonic() >= end:
                holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
                raise ConfigError(
                    f"{self.folder}: expected to be the only job that writes there, but {holder} does; wait for its "
                    "end, stop it, or give another folder with --out"
                )
            time.sleep(0.05)

    def _warn(self, reason: str) -> None:
        warnings.warn(f"{self.folder}: not locked ({reason}); see to it that no second job writes there", stacklevel=4)


def _open_lock(path: Path) -> int:
    """Open the lock file, making it where it is missing; a link is not followed, and nothing is cut or waited for."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    what = "a symbolic link"
    if not path.is_symlink():
        try:
            descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            what = str(error)
        else:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                return descriptor
            os.close(descriptor)
            what = "a file with other names" if stat.S_ISREG(found.st_mode) else "something else"
    raise ConfigError(f"{path}: expected a plain file of this library's own, got {what}; move it away")
