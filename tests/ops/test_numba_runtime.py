"""The kernels' threads, their cache, and their functions of one variable."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_kernels import every_op
from numba import njit

from wavemamba import ShapeError
from wavemamba.ops import causal_conv1d, selective_scan, to_haar_map
from wavemamba.ops.cpu import kernels, tensors
from wavemamba.ops.cpu import math as numba_math
from wavemamba.ops.cpu import runtime as numba_runtime
from wavemamba.ops.cpu.simd import HAS_SCALE, LANES, load, splat, store
from wavemamba.ops.warm_up import warm_up

ROOT = Path(__file__).parents[2]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(autouse=True)
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("pool", [False, True])
def test_two_python_threads_at_once(pool, monkeypatch):
    if pool:
        monkeypatch.setattr(numba_runtime, "_forked", True)  # as in a forked child: no OpenMP
    expected = [every_op(seed) for seed in range(4)]
    results = {}

    def work(seed):
        results[seed] = [every_op(seed) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert all(torch.equal(value, expected[seed]) for seed in range(4) for value in results[seed])


def test_pool_and_openmp_give_the_same_bits(monkeypatch):
    expected = every_op()
    monkeypatch.setattr(numba_runtime, "_forked", True)
    assert torch.equal(every_op(), expected)
    monkeypatch.setattr(numba_runtime, "_openmp_parallel", lambda: None)
    monkeypatch.setattr(numba_runtime, "_forked", False)
    assert torch.equal(every_op(), expected)


def test_openmp_library_of_pytorch_is_found():
    if "OpenMP" not in torch.__config__.parallel_info() or sys.platform != "linux":
        pytest.skip("this PyTorch does not run on OpenMP")
    assert numba_runtime._openmp_parallel() is not None


@needs_fork
def test_forked_children():
    result = run_python("import runpy; runpy.run_path('tests/forked_kernels.py', run_name='__main__')")
    assert result.stdout == "done\n", result.stderr


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_import_is_light_and_warm_up_compiles():
    code = (
        "import sys, wavemamba.ops; assert 'numba' not in sys.modules;"
        "from wavemamba.ops.warm_up import warm_up; warm_up();"
        "assert 'wavemamba.ops.selective_scan.numba_forward' in sys.modules"
    )
    assert run_python(code).stderr == ""
    warm_up()  # again: nothing happens


def test_machine_code_is_kept_on_disk(tmp_path):
    code = "import wavemamba.ops.cpu.runtime as r; print(r._sum.cache_hits)"
    first, second = (run_python(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert (first.stdout.strip(), second.stdout.strip()) == ("0", "1"), first.stderr + second.stderr
    assert list(tmp_path.rglob("*.nbc"))


def test_nowhere_to_write_the_cache():
    code = (
        "from numba.core.caching import CacheImpl; CacheImpl._locator_classes = [];"
        "import torch, wavemamba.ops.cpu.runtime as r; print(r.sum_slices(torch.ones(3, 5)).tolist())"
    )
    result = run_python(code)
    assert result.stdout.strip() == str([3.0] * 5), result.stderr


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (7, 16, 3), (2, 5000)])
def test_sum_slices(shape):
    parts = torch.randn(shape)
    total = numba_runtime.sum_slices(parts)
    expected = parts[0].clone()
    for part in parts[1:]:
        expected += part
    assert torch.equal(total, expected)


def apply(function, values):
    """Run a function on vectors over an array of float32."""

    @njit
    def loop(source, target, size):
        for at in range(0, 4 * size, 4 * LANES):
            store(target + at, function(load(source + at)))

    values = np.asarray(values, np.float32)
    padded = np.resize(values, -(-values.size // LANES) * LANES)
    results = np.empty_like(padded)
    loop(padded.ctypes.data, results.ctypes.data, padded.size)
    return results[: values.size]


@njit
def exp2(x):
    return numba_math.exp2_product(x, splat(1.0))


FUNCTIONS = {
    "exp2": (exp2, np.exp2, 3e-7),
    "exp": (numba_math.exp, np.exp, 3e-7),
    "sigmoid": (numba_math.sigmoid, lambda x: 1 / (1 + np.exp(-x)), 3e-7),
    "softplus": (numba_math.softplus, lambda x: np.logaddexp(0, x), 4e-7),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_accurate(name):
    function, truth, tolerance = FUNCTIONS[name]
    x = np.concatenate([np.linspace(-86, 86, 100_000), np.linspace(-1, 1, 100_000), [0.0, -0.0, 1e-30]])
    x = x.astype(np.float32)
    expected = truth(x.astype(np.float64))
    assert np.max(np.abs(apply(function, x) - expected) / expected) < tolerance


def test_rates_are_rounded_once_where_multiply_adds_fuse():
    x = np.float32(np.random.default_rng(0).standard_normal(4096))
    exact = x.astype(np.float64) * numba_math.LOG2_E
    found = apply(numba_math.times_log2_e, x)
    assert np.max(np.abs(found / exact - 1)) < 2**-23
    once = found == exact.astype(np.float32)
    assert once.all() or not HAS_SCALE


def test_exponential_at_the_ends_of_its_range():
    x = np.float32([np.nan, np.inf, -np.inf, 1e30, -1e30, 89.5, -104, 0])
    assert np.array_equal(apply(numba_math.exp, x), [np.nan, np.inf, 0, np.inf, 0, np.inf, 0, 1], equal_nan=True)
    x[5:7] = [130, -160]
    assert np.array_equal(apply(exp2, x), [np.nan, np.inf, 0, np.inf, 0, np.inf, 0, 1], equal_nan=True)
    assert np.array_equal(apply(numba_math.sigmoid, x[:3]), [np.nan, 1, 0], equal_nan=True)
    assert np.array_equal(apply(numba_math.softplus, x[:5]), [np.nan, np.inf, 0, np.float32(1e30), 0], equal_nan=True)


@pytest.mark.parametrize("entry", [-1, 16])
def test_orders_that_point_outside_are_refused(entry):
    order = torch.arange(16)
    order[3] = entry
    x, A, B = torch.randn(1, 16, 4), -torch.ones(4, 2), torch.randn(1, 16, 2)
    with pytest.raises(ShapeError, match=r"order: expected every token 0 to 15"):
        causal_conv1d(x, A, order=order, backend="numba")
    with pytest.raises(ShapeError, match="order"):
        selective_scan(x, x.abs(), A, B, B, order=order, backend="numba")


@pytest.mark.parametrize("advice", [True, False])
def test_large_tensors_in_huge_pages_or_not(advice, monkeypatch):
    seen, advise = [], tensors._advise()
    if advice and advise is None:
        pytest.skip("this system has no huge pages")
    function = (lambda *args: seen.append((args, advise(*args)))) if advice else None
    monkeypatch.setattr(tensors, "_advise", lambda: function)
    x, weight = torch.randn(1, 40_000, 256), torch.randn(256, 2)
    y = causal_conv1d(x, weight, backend="numba")
    assert len(seen) == advice
    for (first, size, _), status in seen:
        assert status in (0, -1)  # a kernel without huge pages refuses
        assert y.data_ptr() <= first < first + size <= y.data_ptr() + y.nbytes
    torch.testing.assert_close(y, causal_conv1d(x, weight, backend="torch"))


def test_inference_mode():
    with torch.inference_mode():
        x, A, B = torch.randn(1, 16, 4), -torch.ones(4, 2), torch.randn(1, 16, 2)
        y = selective_scan(causal_conv1d(x, A, backend="numba"), x.abs(), A, B, B, backend="numba")
        assert to_haar_map(y.view(1, 4, 4, 4), 1, "mosaic", backend="numba").isfinite().all()


def test_a_job_knows_its_fields():
    job = kernels.Job(size=np.int64, x=kernels.ROWS)
    filled = job.fill(3, x=(1, 2, 3, 4), size=7)
    assert np.frombuffer(filled, np.int64).tolist() == [0, 3, 0, 7, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="size"):
        job.fill(1, x=(0, 0, 0, 0))
