"""What goes wrong around the CPU kernels: no memory, interruptions, damaged or unwritable caches, other processors."""

import _thread
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import config
from numba.core.caching import CacheImpl

from wavemamba import BackendUnavailable
from wavemamba.ops import SlowBackendWarning, backends, causal_conv1d, selective_scan, warm_up
from wavemamba.ops.cpu import disk_cache, kernels, runtime
from wavemamba.ops.cpu.pool import Pool
from wavemamba.ops.dispatch import backend

resource = pytest.importorskip("resource")
ROOT = Path(__file__).parents[2]

JOB = kernels.Job(scratch=np.int64, target=np.int64)


def compile_kernel():
    """A kernel that counts its items, with as much scratch memory as the job says."""

    def tiny(job, item, scratch): ...

    return kernels.kernel(JOB, lambda job: job.scratch)(tiny)


@contextmanager
def memory_left(size):
    """Let the process have only so many more bytes of address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


needs_limits = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's address space limit")


def wide_conv(x):
    return causal_conv1d(x, torch.ones(1, 400_000), backend="numba").sum()


def large_state_scan(x):
    B = torch.ones(1, 1, 300_000)
    return selective_scan(x, x.detach(), -B[0], B, B, backend="numba").sum()


@needs_limits
def test_no_memory_for_the_scratch():
    """In a process of its own: one that has run other tests holds enough freed memory."""
    calls = "t.check_no_memory(t.wide_conv); t.check_no_memory(t.large_state_scan)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    code = f"from ops import test_numba_faults as t; {calls}"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def check_no_memory(call):
    x = torch.ones(1, 1, 1, requires_grad=True)
    loss = call(x)
    with memory_left(120 << 20):
        with pytest.raises(MemoryError, match="0 of 1 parts"):
            call(x.detach())
        with pytest.raises(MemoryError, match="0 of 1 parts"):
            loss.backward()
    call(x)  # and afterwards all is well


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_whose_items_were_not_all_finished_raises(threads, monkeypatch):
    kernel = compile_kernel()
    runtime.launch(kernel, JOB.fill(5, scratch=1, target=0))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for forked in (False, True):  # on OpenMP's threads and on the pool's
            monkeypatch.setattr(runtime, "_forked", forked)
            with pytest.raises(MemoryError, match="0 of 5 parts"):
                runtime.launch(kernel, JOB.fill(5, scratch=1 << 60, target=0))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("hits", [1, 3])
def test_an_interrupted_caller_waits_for_its_helpers(hits):
    """Whatever hits the calling thread, and however often, nobody writes to its buffers after it has left."""
    entered, closing, finished = threading.Event(), threading.Event(), []
    caller = threading.get_ident()

    def function(job):
        if threading.get_ident() == caller:
            entered.wait(10)
            closing.set()
            raise KeyboardInterrupt
        entered.set()
        closing.wait(10)
        for _ in range(hits - 1):
            _thread.interrupt_main()
            threading.Event().wait(0.02)  # until the caller has noticed
        threading.Event().wait(0.02)
        finished.append(job)

    with pytest.raises(KeyboardInterrupt):
        Pool().run(function, 7, 2)
    assert finished == [7]


def test_a_pool_without_threads_to_be_had(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    calls, pool = [], Pool()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        pool.run(calls.append, 7, 3)
    assert calls == [7]
    both = threading.Barrier(2)
    pool.run(lambda job: both.wait(10), 8, 2)  # later there are some again


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(disk_cache, "_warned", False)
    return tmp_path


def damaged(content):
    half = len(content) // 2
    return {
        "empty": b"",
        "cut": content[:half],
        "zeroed": bytes(len(content)),
        "a hole": content[:half] + bytes(100) + content[half + 100 :],
        "another's": b"something else",
    }


@pytest.mark.parametrize("damage", damaged(b""))
def test_damaged_machine_code_is_compiled_anew(cache, damage):
    compile_kernel()
    (file,) = cache.rglob("*.nbc")
    file.write_bytes(damaged(file.read_bytes())[damage])
    kernel = compile_kernel()
    assert kernel.cache_hits == 0
    runtime.launch(kernel, JOB.fill(5, scratch=1, target=0))
    assert compile_kernel().cache_hits == 1


def fail_to_write(kind, monkeypatch):
    if kind == "full":
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if kind == "nowhere":
        monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    else:
        monkeypatch.setattr(disk_cache, "write_atomically", refuse_to_write)
    return lambda: None


def refuse_to_write(path, data):
    raise PermissionError(13, "Read-only file system", str(path))


@pytest.mark.parametrize("kind", ["full", "nowhere", "read-only"])
def test_where_nothing_can_be_written(cache, kind, monkeypatch):
    restore = fail_to_write(kind, monkeypatch)
    try:
        with pytest.warns(RuntimeWarning, match="cannot be kept on disk .* NUMBA_CACHE_DIR"):
            kernel = compile_kernel()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compile_kernel()  # one warning is enough
    finally:
        restore()
    runtime.launch(kernel, JOB.fill(5, scratch=1, target=0))
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_unreadable_machine_code(cache, monkeypatch):
    compile_kernel()
    (file,) = cache.rglob("*.nbc")
    file.unlink()
    file.mkdir()  # reading it is an OSError
    with pytest.warns(RuntimeWarning):
        runtime.launch(compile_kernel(), JOB.fill(5, scratch=1, target=0))


def test_each_processor_has_a_file_of_its_own(tmp_path):
    """Two machines that share a folder never load each other's code, whoever wrote last."""
    files = [disk_cache._Files(tmp_path, "k.f", 1) for _ in range(2)]
    for file, features in zip(files, ("+avx512f", "-avx512f"), strict=True):
        file.save(("signature", features), features)
    assert [files[0].load(("signature", features)) for features in ("+avx512f", "-avx512f")] == ["+avx512f", "-avx512f"]
    files[0].save("key", "old sources")
    disk_cache._Files(tmp_path, "k.f", 2).save("key", "new")
    assert files[0].load("key") is None
    assert len(list(tmp_path.iterdir())) == 1  # what no process will read again is gone


def _write(folder, start):
    files = disk_cache._Files(folder, "k.f", 1)
    start.wait(10)
    for _ in range(30):
        files.save("key", list(range(20_000)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start, files = context.Event(), disk_cache._Files(tmp_path, "k.f", 1)
    writers = [context.Process(target=_write, args=(tmp_path, start)) for _ in range(2)]
    for writer in writers:
        writer.start()
    start.set()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        value = files.load("key")
        seen.add(None if value is None else len(value))
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {None, 20_000}
    assert len(files.load("key")) == 20_000
    assert len(list(tmp_path.iterdir())) == 1


def test_numba_switched_off(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    monkeypatch.setattr(backend, "_warned", set())
    x, weight = torch.randn(1, 4, 2), torch.randn(2, 3)
    with pytest.warns(SlowBackendWarning, match="'torch': .*NUMBA_DISABLE_JIT"):
        y = causal_conv1d(x, weight)
    with pytest.raises(BackendUnavailable, match="NUMBA_DISABLE_JIT keeps numba from compiling; unset it"):
        causal_conv1d(x, weight, backend="numba")
    with pytest.raises(BackendUnavailable, match="NUMBA_DISABLE_JIT"):
        warm_up()
    assert any("NUMBA_DISABLE_JIT" in str(status) for status in backends())
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")
    assert torch.allclose(causal_conv1d(x, weight, backend="numba"), y, atol=1e-6)


@pytest.mark.parametrize("told", [{"NUMBA_CPU_NAME": "generic"}, {"NUMBA_ENABLE_AVX": "0"}], ids=str)
def test_vectors_follow_the_processor_that_numba_is_told(tmp_path, told):
    code = (
        "import torch, wavemamba.ops.cpu.runtime as runtime, wavemamba.ops.cpu.math as m;"
        "from numba import njit; from wavemamba.ops.cpu.simd import HAS_SCALE, load, splat, store;"
        "f = njit(lambda a, b: store(b, m.exp2_product(load(a), splat(0.5))));"
        "x, y = torch.linspace(-20, 20, 32), torch.zeros(32); f(x.data_ptr(), y.data_ptr());"
        "print(HAS_SCALE, (y.double().log2() - x.double() / 2).abs().max().item() < 1e-6,"
        " runtime.sum_slices(torch.ones(3, 2)).tolist())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **told},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.split("\n")[0] == "False True [3.0, 3.0]", result.stderr
