"""Checkpoints: whole or not there, checked before use, the last good one never lost."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from wavemamba.errors import CheckpointError
from wavemamba.files import write_atomically
from wavemamba.training import Checkpoints, DamagedCheckpointWarning, read_checkpoint
from wavemamba.training.randomness import random_state, restore_random_state, seed_everything


def state(step, size=1000):
    return {"step": step, "model": {"w": torch.full((size,), float(step))}, "note": ["plain", 1, 2.5, None]}


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / "state.pt", 100),
    "empty": lambda folder: os.truncate(folder / "state.pt", 0),
    "changed": lambda folder: flip_a_byte(folder / "state.pt"),
    "state missing": lambda folder: (folder / "state.pt").unlink(),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: os.truncate(folder / "manifest.json", 20),
    "manifest of something else": lambda folder: (folder / "manifest.json").write_text("[]"),
}


def test_saves_loads_and_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.load() is None
    for step in (1, 5, 10):
        checkpoints.save(step, state(step))
    assert checkpoints.steps() == [5, 10]
    step, loaded = checkpoints.load()
    assert step == 10
    assert torch.equal(loaded["model"]["w"], torch.full((1000,), 10.0))
    assert loaded["note"] == ["plain", 1, 2.5, None]
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000005", "step-00000010"]


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state(3))
    checkpoints.save(3, state(4))
    assert checkpoints.load()[1]["step"] == 4


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, state(3))
    os.replace(checkpoints.path(3), tmp_path / ".old-00000003")
    assert checkpoints.load()[1]["step"] == 3
    os.replace(checkpoints.path(3), tmp_path / ".old-00000003")
    checkpoints.save(4, state(4))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_a_kill_while_an_old_one_is_deleted_leaves_no_half_under_its_name(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(1))
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: (path / "state.pt").unlink())
    checkpoints.save(2, state(2))
    assert checkpoints.steps() == [2]
    monkeypatch.undo()
    checkpoints.save(3, state(3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_falls_back_with_a_warning(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    DAMAGES[damage](checkpoints.path(2))
    with pytest.warns(DamagedCheckpointWarning, match="step-00000002.*going on from step 1"):
        step, loaded = checkpoints.load()
    assert (step, loaded["step"]) == (1, 1)
    checkpoints.set_aside_after(step)
    assert checkpoints.steps() == [1]
    assert (tmp_path / "damaged-00000002").is_dir()
    checkpoints.save(2, state(2))
    assert checkpoints.load()[0] == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_only_damaged_ones_are_an_error_and_stay(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    DAMAGES[damage](checkpoints.path(1))
    with pytest.raises(CheckpointError, match="restore one from a copy"):
        checkpoints.load()
    assert checkpoints.steps() == [1]


def test_a_hostile_file_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    import hashlib

    folder = tmp_path / "step-00000001"
    folder.mkdir()
    data = pickle.dumps(Bomb())
    (folder / "state.pt").write_bytes(data)
    files = {"state.pt": [len(data), hashlib.sha256(data).hexdigest()]}
    manifest = {"format": "wavemamba training checkpoint", "step": 1, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_an_error_and_the_last_good_one_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(
            CheckpointError, match=r"could not be written \(.*File too large.*step-00000001.*MiB are free"
        ):
            checkpoints.save(2, state(2, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"]
    assert checkpoints.load()[0] == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="file"):
        Checkpoints(tmp_path / "file").save(1, state(1))


WRITER = """
import sys, torch
from wavemamba.training import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
step = 0
while True:
    step += 1
    checkpoints.save(step, {"step": step, "w": torch.full((300_000,), float(step))})
    print(step, flush=True)
"""


def test_killed_while_writing_leaves_a_whole_one(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 3:
            break
    for delay in (0.002,):
        time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    written = 3 + len(process.stdout.read().split())
    process.wait()
    step, loaded = Checkpoints(tmp_path).load()
    assert step >= written
    assert torch.equal(loaded["w"], torch.full((300_000,), float(step)))


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomically(path, b"new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_random_states_survive_a_checkpoint(tmp_path):
    import random

    import numpy as np

    def draw():
        return [random.random(), random.gauss(0, 1), *np.random.randn(3).tolist(), *torch.randn(3).tolist()]  # noqa: NPY002

    seed_everything(1, "test")
    draw()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"random": random_state()})
    expected = draw()
    seed_everything(2, "other")
    restore_random_state(checkpoints.load()[1]["random"])
    assert draw() == expected
