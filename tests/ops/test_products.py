"""Products of float32 matrices by oneDNN and a kernel in the place of MKL."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from support import relative_error
from torch import nn

from wavemamba import machine, set_up_cpu
from wavemamba.ops import products, use_backend
from wavemamba.ops.dispatch import availability

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
TOLERANCE = 1e-6


@pytest.fixture(params=["kernel", "onednn"])
def wide(request, monkeypatch):
    """Small products by the kernel, or all by oneDNN."""
    if request.param == "kernel":
        pytest.importorskip("numba")
    assert products.use_wide_vectors()
    assert products.use_wide_vectors()  # again changes nothing
    monkeypatch.setattr(products, "_with_kernel", request.param == "kernel")
    yield request.param
    products.use_mkl()


def layouts(rows, columns):
    """A matrix as it may lie in memory."""
    wide = torch.randn(rows, 2 * columns)
    yield torch.randn(rows, columns)
    yield torch.randn(columns, rows).t()
    yield wide[:, :columns]
    yield wide[:, ::2]


def who(function):
    """Who computed the products: "kernel", "onednn", or None of them."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kernel", "onednn"):
            compute = getattr(products, f"_by_{name}")
            patch.setattr(products, f"_by_{name}", lambda *given, c=compute, n=name: (found.append(n), c(*given))[1])
        function()
    return found[0] if found else None


def test_products_are_what_they_were(wide):
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


def test_a_layer_and_its_gradients(wide):
    torch.manual_seed(0)
    layer, x = nn.Linear(128, 256), torch.randn(2, 32, 128, requires_grad=True)
    dy = torch.randn(2, 32, 256)
    found = torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), dy)
    layer.double()
    wide = x.detach().double().requires_grad_()
    exact = torch.autograd.grad(layer(wide), (wide, layer.weight, layer.bias), dy.double())
    assert all(relative_error(a, b) < TOLERANCE for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("columns", [2, 8, 64])
def test_the_gradient_of_a_weight_for_many_rows(wide, columns):
    """The result lies as any other product."""
    torch.manual_seed(0)
    for many, few in itertools.product((torch.randn(2048, 128), torch.randn(128, 2048).t()), layouts(2048, columns)):
        exact = many.double().t() @ few.double()
        for found, wanted in ((many.t() @ few, exact), (few.t() @ many, exact.t())):
            assert relative_error(found, wanted) < TOLERANCE
            assert found.is_contiguous()
    many = torch.randn(2048, 128)
    assert who(lambda: many.t() @ torch.randn(2048, columns)) == wide
    slice_of_a_projection = torch.randn(2048, 80)[:, :columns]
    exact = many.double().t() @ slice_of_a_projection.double()
    assert relative_error(many.t() @ slice_of_a_projection, exact) < TOLERANCE
    assert who(lambda: many.t() @ slice_of_a_projection) == (wide if columns < 64 else None)
    one = torch.ones(1, 1).expand(2048, 128)  # the gradient of a sum
    exact = few.abs().double().sum(0).expand(128, columns)
    assert relative_error(one.t() @ few.abs(), exact) < TOLERANCE


@pytest.mark.parametrize("columns", [1, 16, 17, 32, 50, 100])
@pytest.mark.parametrize("inner", [1, 7, 64, 300, 2500])
@pytest.mark.parametrize("rows", [12, 13, 24, 55, 200])
def test_the_kernel_on_edges(rows, inner, columns, monkeypatch):
    pytest.importorskip("numba")
    from wavemamba.ops.products import numba

    frames = []

    def framed(shape):
        """Room for a result inside of numbers that are not its own."""
        size = math.prod(shape)
        frames.append((torch.full((size + 128,), math.nan), size))
        return frames[-1][0][64 : 64 + size].view(shape)

    monkeypatch.setattr(numba, "empty_rows", framed)
    torch.manual_seed(0)
    bias = torch.randn(columns)
    for a, b in itertools.product(layouts(rows, inner), [*layouts(inner, columns)][:3]):
        exact = a.double() @ b.double()
        scale = a.double().abs() @ b.double().abs()
        for given in (None, bias):
            found = numba.multiplied(a, b, given)
            assert found.shape == (rows, columns)
            wanted = exact if given is None else exact + given
            assert ((found - wanted).abs() <= 1e-6 * (scale + bias.abs())).all()
    assert all(frame[:64].isnan().all() and frame[64 + size :].isnan().all() for frame, size in frames)


@pytest.mark.parametrize("shape", [(256, 64, 512), (1, 1024, 2048), (130, 700, 33)])
def test_the_bias_of_bfloat16_is_added_before_rounding(wide, shape):
    if not products._with_narrow_bias:
        pytest.skip("this processor has no bfloat16")
    torch.manual_seed(0)
    rows, inner, columns = shape
    x, layer = torch.randn(rows, inner, dtype=torch.bfloat16, requires_grad=True), nn.Linear(inner, columns).bfloat16()
    y = layer(x)
    wide_layer = nn.Linear(inner, columns).double()
    wide_layer.load_state_dict(layer.state_dict())
    exact = wide_layer(x.detach().double())
    assert y.dtype is torch.bfloat16
    rounded = exact.float().bfloat16()
    assert relative_error(y, rounded) < 5e-4  # nearly all are the nearest bfloat16
    products.use_mkl()
    before = layer(x)
    assert relative_error(before, exact) >= relative_error(y, exact)
    (found,) = torch.autograd.grad(y.float().sum(), x)
    (wanted,) = torch.autograd.grad(before.float().sum(), x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("rows", "inner", "columns"), [(512, 4000, 64), (3000, 64, 100), (34, 2048, 64)])
def test_the_kernel_gives_the_same_numbers_on_any_number_of_threads(rows, inner, columns):
    pytest.importorskip("numba")
    from wavemamba.ops.products.numba import multiplied

    a, b = torch.randn(inner, rows).t(), torch.randn(inner, columns)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(multiplied(a, b, None))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_products_from_many_threads(wide):
    torch.manual_seed(0)
    operands = [(torch.randn(300, 64), torch.randn(64, 130)) for _ in range(16)]
    expected = [a @ b for a, b in operands]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda pair: pair[0] @ pair[1], operands))
    assert all(map(torch.equal, found, expected))


def test_products_of_lazy_views_under_another_default_device_and_autocast(wide):
    torch.manual_seed(0)
    pairs = torch.randn(300, 64, 2)
    lazily_negated = torch.view_as_complex(pairs).conj().imag
    b = torch.randn(64, 130)
    assert lazily_negated.is_neg()
    exact = -pairs[..., 1].double() @ b.double()
    assert relative_error(lazily_negated @ b, exact) < TOLERANCE
    with torch.device("meta"):
        assert relative_error(lazily_negated @ b, exact) < TOLERANCE
    with torch.autocast("cpu", torch.bfloat16):
        assert (pairs[..., 1] @ b).dtype is torch.bfloat16


def test_the_kernel_passes_on_what_is_not_finite():
    pytest.importorskip("numba")
    from wavemamba.ops.products.numba import multiplied

    a, b = torch.randn(40, 30), torch.randn(30, 50)
    a[3, 4], b[7, 8], b[2, 9] = math.inf, math.nan, 0.0
    a[5, 2] = math.inf
    torch.testing.assert_close(multiplied(a, b, None), a @ b, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2**15), (2**15, 1), (2048, 16), (2047, 33), (100, 700), (513, 64), (16, 2048)])
def test_a_matrix_is_turned_by_all_cores_as_by_pytorch(shape):
    x = torch.randn(shape).t()
    dense = products._dense(x)
    assert dense.is_contiguous()
    assert torch.equal(dense, x)
    pytest.importorskip("numba")
    from wavemamba.ops.products.numba import turned

    assert torch.equal(turned(x.t()), x)


def test_who_computes_what(wide):
    x, small, layer = torch.randn(64, 128), torch.randn(4, 4), nn.Linear(128, 256)
    assert who(lambda: layer(x)) == wide
    assert who(lambda: F.linear(x, layer.weight)) == wide
    assert who(lambda: x @ torch.randn(128, 2048)) == "onednn"  # too large to stay in cache
    assert who(lambda: torch.randn(4, 2048) @ torch.randn(2048, 128)) == "onednn"
    assert who(lambda: small @ small) is None
    assert who(lambda: x.double() @ layer.weight.double().t()) is None
    assert who(lambda: x @ torch.randn(128, 512)[:, ::2]) is None  # neither has such strides
    products.use_mkl()
    products.use_mkl()
    assert who(lambda: layer(x)) is None


def test_another_backend_leaves_the_kernel_out(monkeypatch):
    x = torch.randn(128, 128)
    for name, expected in (("torch", "onednn"), ("auto", "kernel" if availability.INSTALLED["numba"] else "onednn")):
        try:
            with use_backend(name):
                assert products.use_wide_vectors()
            assert who(lambda: x @ x) == expected
        finally:
            products.use_mkl()


def test_what_does_not_fit_is_told_by_pytorch(wide):
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.mm(torch.randn(1024, 64), torch.randn(65, 1024))
    with pytest.raises(RuntimeError, match=r"same dtype|expected m1 and m2"):
        torch.mm(torch.randn(1024, 64), torch.randn(64, 1024).double())
    empty = torch.randn(0, 64) @ torch.randn(64, 32)
    assert empty.shape == (0, 32)


def test_batches_of_matrices_and_derivatives_of_functions(wide):
    a, b = torch.randn(3, 64, 128), torch.randn(128, 256)
    assert relative_error(torch.func.vmap(lambda x: x @ b)(a), a.double() @ b.double()) < TOLERANCE
    _, tangent = torch.func.jvp(lambda x: x @ b, (a[0],), (a[1],))
    assert relative_error(tangent, a[1].double() @ b.double()) < TOLERANCE


def test_where_libraries_disagree_nothing_changes(monkeypatch):
    monkeypatch.setattr(products, "_by_onednn", lambda a, b, bias: torch.zeros(3, 3))
    assert not products.use_wide_vectors()

    def missing(*_):
        raise AttributeError

    monkeypatch.setattr(products, "_by_onednn", missing)
    assert not products.use_wide_vectors()
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
        assert bool(who(lambda: x @ x)) == idle
    finally:
        products.use_mkl()
