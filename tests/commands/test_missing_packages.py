"""A command without one of the packages of its extra: one line says what to install."""

import sys

import pytest

from wavemamba.commands.running import run_command

COMMANDS = {
    "train": ["--data=digits", "--out={}/out"],
    "encode": ["--data={}", "--out={}/out", "--autoencoder={}"],
    "evaluate": ["--samples={}", "--reference={}", "--out={}/scores.json"],
    "sample": ["--model={}/nowhere", "--out={}/grid.png"],
}
MISSING = [
    *(("train", package) for package in ("accelerate", "tqdm", "PIL")),
    *(("encode", package) for package in ("diffusers", "tqdm", "PIL")),
    *(("evaluate", package) for package in ("accelerate", "tqdm", "PIL", "torch_fidelity")),
    ("sample", "PIL"),
    *((command, "yaml") for command in COMMANDS),
]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Call a command as `python -m` does, in a process that has not imported it yet and cannot import a package."""

    def call(command, hidden, *options):
        rooms = ("wavemamba.commands.", "wavemamba.training", "wavemamba.data", f"{hidden}.")
        for name in [name for name in sys.modules if name.startswith(rooms) and name != "wavemamba.commands.running"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, hidden, None)
        words = [word.format(tmp_path) for word in (*COMMANDS[command], *options)]
        monkeypatch.setattr(sys, "argv", [command, *words])
        return run_command(command), capsys.readouterr().err

    return call


@pytest.mark.parametrize(("command", "package"), MISSING)
def test_a_missing_package_is_named(run, tmp_path, command, package):
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    status, said = run(command, package, *(["--recipe={}/recipe.yaml"] if package == "yaml" else []))
    assert status == 1
    assert said.count("\n") == 1
    assert package.replace("_", "-") in said
    assert "pip install 'wavemamba[train]'" in said


def test_sampling_needs_nothing_of_training(run):
    status, said = run("sample", "accelerate")
    assert status == 1
    assert "nowhere" in said


def test_a_fault_of_this_library_is_no_missing_package(monkeypatch):
    with pytest.raises(ModuleNotFoundError, match=r"wavemamba\.commands\.nothing"):
        run_command("nothing")
