"""Schedules, the refusal of other settings, signals, the log and its pictures."""

import math
import os
import signal

import pytest
import torch

from wavemamba.errors import CheckpointError, ConfigError, ShapeError
from wavemamba.sampling import image_grid, to_uint8
from wavemamba.training import RunLog, StopSignal, learning_rate_factor, read_log
from wavemamba.training.checkpoint_files import check_same_files
from wavemamba.training.stopping import check_same_settings


def test_learning_rate():
    constant = learning_rate_factor("constant", warmup=10, steps=100)
    assert [constant(0), constant(4), constant(9), constant(10), constant(500)] == [0.1, 0.5, 1, 1, 1]
    cosine = learning_rate_factor("cosine", warmup=10, steps=110)
    assert cosine(10) == 1
    assert math.isclose(cosine(60), 0.5)
    assert cosine(110) == cosine(1000) == 0
    assert learning_rate_factor("constant", warmup=0, steps=1)(0) == 1
    with pytest.raises(ConfigError, match="'constant', 'cosine'"):
        learning_rate_factor("linear", warmup=0, steps=1)


def test_other_settings_are_listed():
    check_same_settings({"lr": 1}, {"lr": 1}, "runs/a")
    with pytest.raises(ConfigError, match=r"runs/a.*lr was 1, now 2; seed was None, now 3"):
        check_same_settings({"lr": 1}, {"lr": 2, "seed": 3}, "runs/a")


def test_first_signal_asks_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.agreed(1, torch.device("cpu"))
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed(1, torch.device("cpu"))
        assert stop.name == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_machines_that_see_other_checkpoints_are_refused(monkeypatch):
    check_same_files([3], "runs/a")

    def gather(found, own):
        found[:] = [own, []]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    check_same_files([], "runs/a")
    with pytest.raises(CheckpointError, match=r"runs/a.*process 0: \[3\], process 1: none.*all machines share"):
        check_same_files([3], "runs/a")


def test_lines_that_a_crash_spoilt_are_left_out_of_the_log(tmp_path):
    spoilt = b'{"step": 1, "loss": 2.0}\n\x00\x00\x00\n[1]\n{"loss": 1.0}\n{"step": 2, "loss": 1.0}\n\xff'
    (tmp_path / "log.jsonl").write_bytes(spoilt)
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_log_drops_what_is_taken_again(tmp_path):
    log = RunLog(tmp_path)
    log.start(0, {"lr": 1})
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 10})
    with log.path.open("a") as file:
        file.write('{"step": 40, "lo')
    RunLog(tmp_path).start(20, {"lr": 1})
    assert read_log(log.path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}]
    silent = RunLog(tmp_path / "other", enabled=False)
    silent.start(0, {})
    silent.write(1, {"loss": 1.0})
    assert not (tmp_path / "other").exists()


def test_grid_places_and_enlarges():
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0, 5.0)])
    grid = image_grid(images, 2, tile=8, gap=1)
    assert grid.size == (2 * 9 + 1, 2 * 9 + 1)
    assert [grid.getpixel(at)[0] for at in ((1, 1), (8, 8), (10, 1), (1, 10), (10, 10))] == [0, 0, 128, 255, 255]
    labelled = image_grid(images, 2, tile=24, row_labels=["a", "b"], column_labels=["x", "y"])
    assert labelled.size[0] > 2 * 26 + 2
    assert labelled.size[1] > 2 * 26 + 2
    two_lines = image_grid(images, 2, tile=24, row_labels=["a\nb", "c\r\nd"], column_labels=["x\n", "\ny"])
    one_line = image_grid(images, 2, tile=24, row_labels=["a b", "c d"], column_labels=["x", " y"])
    assert two_lines.tobytes() == one_line.tobytes()
    with pytest.raises(ShapeError, match="images"):
        image_grid(torch.zeros(2, 2), 2)
    with pytest.raises(ConfigError, match="columns"):
        image_grid(images, 0)
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 1.0])).tolist() == [0, 0, 128, 255]
