"""One job at a time in a folder, and nothing stale after a kill."""

import errno
import fcntl
import os
import subprocess
import sys
import warnings

import pytest

from wavemamba.errors import ConfigError
from wavemamba.locks import FolderLock

# Without importing torch: what another job does, and a child of it that lives on for a while.
HOLDER = """
import fcntl, os, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 on elsewhere")
file.flush()
if os.fork() == 0:
    os.read(0, 1)
    os._exit(0)
print("held", flush=True)
os.read(0, 1)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.stdin.close()
    process.kill()
    process.wait()


def test_a_folder_in_use_is_refused_with_its_holder(tmp_path, holder):
    with pytest.raises(ConfigError, match=r"process 7 on elsewhere.*--out"), FolderLock(tmp_path, patience=0.1):
        pass
    assert (tmp_path / ".lock").read_text() == "process 7 on elsewhere"


def test_a_killed_job_leaves_the_folder_free_though_its_children_live(tmp_path, holder):
    holder.kill()
    holder.wait()
    with FolderLock(tmp_path, patience=0.0):
        assert "process" in (tmp_path / ".lock").read_text()


def test_it_waits_for_a_holder_that_is_ending(tmp_path, holder):
    holder.stdin.write(b"..")  # a byte ends the job, the other its child
    holder.stdin.flush()
    with FolderLock(tmp_path, patience=60.0):
        pass


def test_it_can_be_taken_again_and_another_process_then_waits(tmp_path):
    for _ in range(2):
        with FolderLock(tmp_path / "new"):
            pass
    attempt = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", attempt, str(tmp_path / "new" / ".lock")]
    with FolderLock(tmp_path / "new"):
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_only_the_main_process_locks(tmp_path):
    with FolderLock(tmp_path / "a", enabled=False):
        assert not (tmp_path / "a").exists()


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match=r"not locked \(.*No locks available"), FolderLock(tmp_path):
        pass
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with FolderLock(tmp_path):
            pass


def test_a_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with pytest.warns(UserWarning, match="not locked .*no POSIX locks"), FolderLock(tmp_path):
        assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize("kind", ["symlink", "dangling", "hard link", "fifo", "folder"])
def test_a_lock_that_is_no_plain_file_is_left_alone(tmp_path, kind):
    precious, lock = tmp_path / "precious", tmp_path / "run" / ".lock"
    precious.write_text("weeks of work")
    lock.parent.mkdir()
    make = {
        "symlink": lambda: lock.symlink_to(precious),
        "dangling": lambda: lock.symlink_to(tmp_path / "elsewhere"),
        "hard link": lambda: os.link(precious, lock),
        "fifo": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }
    make[kind]()
    with pytest.raises(ConfigError, match=r"\.lock: expected a plain file"), FolderLock(lock.parent):
        pass
    assert precious.read_text() == "weeks of work"
    assert not (tmp_path / "elsewhere").exists()
