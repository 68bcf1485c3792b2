"""A small run of benchmarks/fuzz.py, and that it notices what is wrong."""

import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("fuzz")


def test_random_calls_agree_with_the_definition(fuzz, capsys):
    assert fuzz.run(seed=1, cases=range(100), triton=0.0) == []
    assert "100 cases of seed 1" in capsys.readouterr().out


def test_a_wrong_number_is_found_and_can_be_run_again(fuzz, monkeypatch, capsys):
    right = fuzz.causal_conv1d

    def wrong(x, weight, **options):
        y, last = right(x, weight, **options)
        return y * (1 if x.dtype == torch.float64 else 1.2), last

    monkeypatch.setattr(fuzz, "causal_conv1d", wrong)
    failures = fuzz.run(seed=1, cases=range(12), triton=0.0)
    assert failures
    case = failures[0].split("--case ")[1].split()[0]
    assert failures[0].startswith(f"python benchmarks/fuzz.py --seed 1 --case {case} --triton 0    # ")
    assert " conv " in failures[0]
    assert [line.split("    #")[0] for line in fuzz.run(1, [int(case)], 0.0)] == [failures[0].split("    #")[0]]
    assert capsys.readouterr().out.count("failed") >= 2


def test_same_case_every_time(fuzz):
    first, second = (fuzz.draw_trial(5, 17, 0.0) for _ in range(2))
    assert str(first) == str(second)
    for name, tensor in first.inputs.items():
        assert torch.equal(tensor, second.inputs[name])
