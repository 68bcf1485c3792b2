"""Recipes, misspelt names, values out of range, overrides."""

import argparse
import re

import pytest
import torch

from wavemamba.commands.parser import RecipeParser, device, number, parse_overrides
from wavemamba.errors import ConfigError


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


def test_a_misspelt_flag_is_named_before_what_is_missing(parser, capsys):
    parser.add_argument("--out", required=True)
    with pytest.raises(SystemExit, match="2"):
        parser.parse(["--outt=x"])
    assert "unrecognized arguments: --outt=x (did you mean --out?)" in capsys.readouterr().err


def test_nothing_in_a_recipe_is_not_given(parser, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("batch-size: null\nset:\nlr: 2.0")
    args = parser.parse(["--recipe", str(recipe)])
    assert (args.batch_size, args.set, args.lr) == (1, [], 2.0)
