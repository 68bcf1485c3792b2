"""Products of float32 matrices by oneDNN in the place of MKL."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from support import relative_error
from torch import nn

from wavemamba import machine, set_up_cpu
from wavemamba.ops import products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
TOLERANCE = 1e-6


@pytest.fixture
def onednn():
    assert products.use_onednn()
    assert products.use_onednn()  # again changes nothing
    yield
    products.use_mkl()


def layouts(rows, columns):
    """A matrix as it may lie in memory."""
    wide = torch.randn(rows, 2 * columns)
    yield torch.randn(rows, columns)
    yield torch.randn(columns, rows).t()
    yield wide[:, :columns]
    yield wide[:, ::2]


def ran(function):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}


def test_products_are_what_they_were(onednn):
    torch.manual_seed(0)
    bias = torch.randn(256)
    for a, b in itertools.product(layouts(64, 128), layouts(128, 256)):
        exact = a.double() @ b.double()
        assert relative_error(a @ b, exact) < TOLERANCE
        assert relative_error(torch.addmm(bias, a, b), bias + exact) < TOLERANCE
        assert relative_error(torch.addmm(bias, a, b, beta=0.5, alpha=2), 0.5 * bias + 2 * exact) < TOLERANCE
        assert relative_error(torch.addmm(torch.ones(64, 1), a, b), 1 + exact) < TOLERANCE
        for out in layouts(64, 256):
            assert torch.mm(a, b, out=out) is out
            assert relative_error(out, exact) < TOLERANCE
            assert torch.addmm(bias, a, b, out=out) is out
            assert relative_error(out, bias + exact) < TOLERANCE


def test_a_layer_and_its_gradients(onednn):
    torch.manual_seed(0)
    layer, x = nn.Linear(128, 256), torch.randn(2, 32, 128, requires_grad=True)
    dy = torch.randn(2, 32, 256)
    found = torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), dy)
    layer.double()
    wide = x.detach().double().requires_grad_()
    exact = torch.autograd.grad(layer(wide), (wide, layer.weight, layer.bias), dy.double())
    assert all(relative_error(a, b) < TOLERANCE for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("columns", [2, 8, 64])
def test_the_gradient_of_a_weight_for_many_rows(onednn, columns):
    """The smaller factor is copied; the result lies as any other product."""
    torch.manual_seed(0)
    for wide, narrow in itertools.product((torch.randn(2048, 128), torch.randn(128, 2048).t()), layouts(2048, columns)):
        exact = wide.double().t() @ narrow.double()
        for found, wanted in ((wide.t() @ narrow, exact), (narrow.t() @ wide, exact.t())):
            assert relative_error(found, wanted) < TOLERANCE
            assert found.is_contiguous()
    assert ran(lambda: wide.t() @ torch.randn(2048, columns))
    slice_of_a_projection = torch.randn(2048, 80)[:, :columns]
    exact = wide.double().t() @ slice_of_a_projection.double()
    assert relative_error(wide.t() @ slice_of_a_projection, exact) < TOLERANCE
    assert ran(lambda: wide.t() @ slice_of_a_projection) == (columns < 64)
    one = torch.ones(1, 1).expand(2048, 128)  # the gradient of a sum
    exact = narrow.abs().double().sum(0).expand(128, columns)
    assert relative_error(one.t() @ narrow.abs(), exact) < TOLERANCE


@pytest.mark.parametrize("shape", [(1, 2**15), (2**15, 1), (2048, 16), (2047, 33), (100, 700), (513, 64), (16, 2048)])
def test_a_matrix_is_turned_by_all_cores_as_by_pytorch(shape):
    x = torch.randn(shape).t()
    dense = products._dense(x)
    assert dense.is_contiguous()
    assert torch.equal(dense, x)
    pytest.importorskip("numba")
    from wavemamba.ops.cpu.turning import turned

    assert torch.equal(turned(x.t()), x)


def test_it_computes_what_is_large_enough_and_nothing_after_it_was_undone(onednn):
    x, small, layer = torch.randn(64, 128), torch.randn(4, 4), nn.Linear(128, 256)
    assert ran(lambda: layer(x))
    assert ran(lambda: F.linear(x, layer.weight))
    assert not ran(lambda: small @ small)
    assert not ran(lambda: x.double() @ layer.weight.double().t())
    assert not ran(lambda: x @ torch.randn(128, 512)[:, ::2])  # oneDNN's fast code has no such strides
    products.use_mkl()
    products.use_mkl()
    assert not ran(lambda: layer(x))


def test_what_does_not_fit_is_told_by_pytorch(onednn):
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.mm(torch.randn(1024, 64), torch.randn(65, 1024))
    with pytest.raises(RuntimeError, match=r"same dtype|expected m1 and m2"):
        torch.mm(torch.randn(1024, 64), torch.randn(64, 1024).double())
    empty = torch.randn(0, 64) @ torch.randn(64, 32)
    assert empty.shape == (0, 32)


def test_batches_of_matrices_and_derivatives_of_functions(onednn):
    a, b = torch.randn(3, 64, 128), torch.randn(128, 256)
    assert relative_error(torch.func.vmap(lambda x: x @ b)(a), a.double() @ b.double()) < TOLERANCE
    _, tangent = torch.func.jvp(lambda x: x @ b, (a[0],), (a[1],))
    assert relative_error(tangent, a[1].double() @ b.double()) < TOLERANCE


def test_where_libraries_disagree_nothing_changes(monkeypatch):
    monkeypatch.setattr(products, "_product", lambda a, b, bias: torch.zeros(3, 3))
    assert not products.use_onednn()

    def missing(*_):
        raise AttributeError

    monkeypatch.setattr(products, "_product", missing)
    assert not products.use_onednn()
    assert products._library is None


@pytest.mark.parametrize(
    ("vendor", "capability", "idle"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_whose_vectors_are_idle(tmp_path, monkeypatch, vendor, capability, idle):
    cpus = tmp_path / "cpuinfo"
    assert not products.mkl_leaves_vectors_idle(cpus)
    cpus.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.mkl_leaves_vectors_idle(cpus) == (idle and torch.backends.mkl.is_available())


@pytest.mark.parametrize("idle", [True, False])
def test_a_process_is_set_up_with_the_faster_one(monkeypatch, idle):
    monkeypatch.setattr(machine, "mkl_leaves_vectors_idle", lambda: idle)
    try:
        setup = set_up_cpu(torch.get_num_threads(), keep_memory=False)
        assert setup.products == ("oneDNN" if idle else "PyTorch's")
        x = torch.randn(128, 128)
        assert ran(lambda: x @ x) == idle
    finally:
        products.use_mkl()
