"""Recipes, overrides, schedules, the refusal of other settings, and the log."""

import argparse
import math
import os
import re
import signal

import pytest
import torch

from wavemamba.errors import CheckpointError, ConfigError, ShapeError
from wavemamba.training import (
    RecipeParser,
    RunLog,
    StopSignal,
    check_same_checkpoint,
    check_same_settings,
    device,
    image_grid,
    learning_rate_factor,
    number,
    parse_overrides,
    read_log,
    to_uint8,
)


@pytest.fixture
def parser():
    made = RecipeParser(prog="x")
    made.add_argument("--batch-size", type=int, default=1)
    made.add_argument("--lr", type=float, default=0.1)
    made.add_argument("--path", choices=("gvp", "vp"), default="vp")
    made.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    made.add_argument("--set", nargs="+", action="extend", default=[])
    return made


def test_recipe_gives_options_and_the_command_line_wins(parser, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("batch_size: 8\nlr: 1.0e-4\npath: gvp\ncompile: true\nset: {dim: 64, depth: 2}\n")
    args = parser.parse(["--lr", "3", "--recipe", str(recipe), "--set", "depth=3"])
    assert (args.batch_size, args.lr, args.path, args.compile) == (8, 3.0, "gvp", True)
    assert parse_overrides(args.set) == {"dim": 64, "depth": 3}
    assert not parser.parse(["--recipe", str(recipe), "--no-compile"]).compile


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 8", "unknown option 'batchsize'; did you mean 'batch-size'"),
        ("- a\n- b", "expected a mapping"),
        ("a: [", "readable YAML"),
        (b"\x89PNG", "readable YAML"),
    ],
)
def test_bad_recipes_are_named(parser, tmp_path, text, message):
    recipe = tmp_path / "r.yaml"
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        parser.parse(["--recipe", str(recipe)])
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        parser.parse(["--recipe", str(tmp_path / "none.yaml")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-sizes", "3"], "did you mean --batch-size?"),
        (["--batch", "3"], "unrecognized arguments: --batch"),
        (["--path", "gpv"], "invalid choice: 'gpv'"),
        (["--lr", "fast"], "invalid float"),
    ],
)
def test_misspelt_flags_are_errors(parser, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        parser.parse(words)
    assert message in capsys.readouterr().err


def test_a_recipes_value_is_checked_like_the_command_lines(parser, tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("path: gpv")
    with pytest.raises(SystemExit):
        parser.parse(["--recipe", str(recipe)])
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (number(int, 1), "0", "expected an integer >= 1, got 0"),
        (number(int, 1), "2.5", "expected an integer >= 1, got '2.5'"),
        (number(float, 0, 1), "1", "expected a number >= 0 and < 1, got 1"),
        (number(float, 0), "nan", "expected a number >= 0, got nan"),
        (number(float, 0), "inf", "expected a number >= 0, got inf"),
        (number(float, 0, above=True), "0", "expected a number > 0, got 0"),
        (device, "gpu", "expected a device such as cpu or cuda:0, got 'gpu'"),
    ],
)
def test_values_out_of_range_are_named(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(message)):
        kind(text)
    assert (number(int, 1)("3"), number(float, 0, 1)("0.5"), device("cpu")) == (3, 0.5, torch.device("cpu"))


def test_overrides_are_literals_or_words():
    assert parse_overrides(["a=1", "b=(8, 8)", "c=mosaic", "d=None"]) == {"a": 1, "b": (8, 8), "c": "mosaic", "d": None}
    with pytest.raises(ConfigError, match="name=value"):
        parse_overrides(["depth"])


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
    check_same_checkpoint(3, "runs/a")

    def gather(found, own):
        found[:] = [own, None]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    check_same_checkpoint(None, "runs/a")
    with pytest.raises(CheckpointError, match=r"runs/a.*process 0: 3, process 1: None.*all machines share"):
        check_same_checkpoint(3, "runs/a")


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
    silent.picture(1, image_grid(torch.zeros(1, 1, 2, 2), 1))
    assert not (tmp_path / "other").exists()


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, tensorboard=True)
    log.start(0, {})
    log.write(5, {"loss": 0.25})
    log.picture(5, image_grid(torch.zeros(4, 1, 2, 2), 2))
    log._board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(5, 0.25)]
    assert events.Tags()["images"] == ["samples"]


def test_grid_places_and_enlarges():
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0, 5.0)])
    grid = image_grid(images, 2, tile=8, gap=1)
    assert grid.size == (2 * 9 + 1, 2 * 9 + 1)
    assert [grid.getpixel(at)[0] for at in ((1, 1), (8, 8), (10, 1), (1, 10), (10, 10))] == [0, 0, 128, 255, 255]
    labelled = image_grid(images, 2, tile=24, row_labels=["a", "b"], column_labels=["x", "y"])
    assert labelled.size[0] > 2 * 26 + 2
    assert labelled.size[1] > 2 * 26 + 2
    with pytest.raises(ShapeError, match="images"):
        image_grid(torch.zeros(2, 2), 2)
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 1.0])).tolist() == [0, 0, 128, 255]
