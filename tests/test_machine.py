"""A process set up for a CPU: its threads, how they wait, and the memory that it keeps."""

import os
import subprocess
import sys

import pytest
import torch

from wavemamba import ConfigError, machine, set_up_cpu

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux can a process look at others and start anew")


def run(tmp_path, body, *arguments, **variables):
    """What a script prints that sets itself up first."""
    script = tmp_path / "script.py"
    script.write_text("import os, sys, torch\nimport wavemamba\nfrom wavemamba import machine, set_up_cpu\n" + body)
    clean = {name: value for name, value in os.environ.items() if name not in (machine.SPINS, machine.POLICY)}
    done = subprocess.run(
        [sys.executable, script, *arguments], env=clean | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@LINUX
@pytest.mark.parametrize(("idle", "waiting"), [(0.0, "sleeping"), (64.0, "spinning")])
def test_threads_wait_as_the_load_has_it_and_the_process_starts_anew_once(tmp_path, idle, waiting):
    body = f"machine.idle_cores = lambda: {idle}\nmachine.usable_cores = lambda: 2\ntorch.set_num_threads(2)\n"
    body += "print('begun', flush=True)\nprint(set_up_cpu(restart=True), sys.argv[1:])"
    *begun, last = run(tmp_path, body, "a b", "-c", OMP_NUM_THREADS="2")
    assert begun == ["begun", "begun"]
    assert last.startswith(f"CpuSetup(threads=2, waiting={waiting!r}, keeps_memory=True, products=")
    assert last.endswith(" ['a b', '-c']")


@pytest.mark.parametrize("variables", [{machine.POLICY: "active"}, {machine.SPINS: "77"}])
def test_what_the_environment_says_is_left_alone(tmp_path, variables):
    body = "print('begun', flush=True)\nset_up_cpu(2, restart=True)\n"
    body += "print({**os.environ} | {'waiting': set_up_cpu().waiting})"
    first, last = run(tmp_path, body, **variables)
    assert first == "begun"
    told = eval(last)
    assert told["waiting"] == "as set"
    assert variables.items() <= told.items()


def test_one_thread_waits_for_nobody(tmp_path):
    assert run(tmp_path, "print(set_up_cpu(1, restart=True).waiting, torch.get_num_threads())") == ["as started 1"]


def test_nothing_starts_anew_unless_asked(monkeypatch):
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("the process started anew"))
    monkeypatch.delenv(machine.SPINS, raising=False)
    monkeypatch.delenv(machine.POLICY, raising=False)
    monkeypatch.setattr(machine, "mkl_leaves_vectors_idle", lambda: False)
    before = torch.get_num_threads()
    try:
        assert set_up_cpu(2, keep_memory=False) == machine.CpuSetup(2, "as started", False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux" or not machine._keep_memory(), reason="needs glibc")
def test_memory_that_was_freed_is_there_for_the_next_step(tmp_path):
    body = """import resource
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.zeros(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
set_up_cpu(1)
print(before, [faults() for step in range(12)][-1])"""
    before, after = map(int, run(tmp_path, body)[0].split())
    assert after < before / 10


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_are_a_whole_number(threads):
    with pytest.raises(ConfigError, match="threads"):
        set_up_cpu(threads)


def test_cores_are_those_of_the_control_group(tmp_path):
    whole = machine.usable_cores(tmp_path)
    assert 1 <= whole <= os.cpu_count()
    (tmp_path / "cpu").mkdir()
    for quota, period, cores in (("-1", "100000", whole), ("150000", "100000", min(whole, 2)), ("1", "100000", 1)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(period + "\n")
        assert machine.usable_cores(tmp_path) == cores
    for text, cores in (("max 100000\n", whole), ("100000 100000\n", 1), ("nonsense", whole)):
        (tmp_path / "cpu.max").write_text(text)
        assert machine.usable_cores(tmp_path) == cores


@LINUX
def test_idle_cores_are_counted():
    assert 0 <= machine.idle_cores() <= os.cpu_count() + 0.5
