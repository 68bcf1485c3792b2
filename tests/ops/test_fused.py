"""The functions that one kernel computes: kernel and plain text are the same function, whoever differentiates it."""

import math

import pytest
import torch
from support import relative_error
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from wavemamba import ops
from wavemamba.layers import attend
from wavemamba.ops import fused

EPS = 1e-5


def rms_norm(batch, grid, width):
    return lambda x, weight: fused.rms_norm(x, weight, EPS), [(batch, *grid, width), (width,)]


def gated_gelu(batch, grid, width):
    return fused.gated_gelu, [(batch, *grid, 2 * width)]


def attention(batch, grid, width):
    tokens = (batch, math.prod(grid), 2 * min(width, 64))
    return lambda q, k, v: attend(q, k, v, 2), [tokens] * 3


FUNCTIONS = [rms_norm, gated_gelu, attention]
OF_ALL_ORDERS = FUNCTIONS[:-1]  # PyTorch's own attention has neither a second derivative on the CPU nor forward mode
SIZES = [(2, (3,), 32), (3, (2, 5), 70), (1, (300,), 7), (2, (1,), 3), (1, (200, 2), 129)]


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    """The kernels compute what is small, too."""
    monkeypatch.setattr(fused.Fused, "least", 1)


@pytest.fixture(params=FUNCTIONS, ids=lambda make: make.__name__)
def make(request):
    """A function and the shapes of its inputs, by batch, grid and width."""
    return request.param


@pytest.fixture(params=OF_ALL_ORDERS, ids=lambda make: make.__name__)
def make_smooth(request):
    """The same without what has first derivatives alone."""
    return request.param


def draw(shapes, **options) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(**options).requires_grad_()
        for shape in shapes
    ]


def gradients(function, inputs, **options):
    y = function(*inputs)
    flowing = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    return y, torch.autograd.grad(y, inputs, flowing, **options)


def is_kernel(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_RecordedBackward"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_value_and_gradients_are_those_in_float64(make, size):
    function, shapes = make(*size)
    exact, exact_gradients = gradients(function, draw(shapes))
    y, found = gradients(function, draw(shapes, dtype=torch.float32))
    assert is_kernel(y)
    assert not is_kernel(exact)
    assert y.dtype is torch.float32
    assert relative_error(y, exact) < 2e-6
    for gradient, wanted in zip(found, exact_gradients, strict=True):
        assert relative_error(gradient, wanted) < 2e-6
    with torch.no_grad():
        assert torch.equal(function(*draw(shapes, dtype=torch.float32)), y)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("make", [gated_gelu, attention])
def test_bfloat16_is_rounded_once(make, size):
    function, shapes = make(*size)
    inputs = draw(shapes, dtype=torch.bfloat16)
    y, found = gradients(function, inputs)
    assert is_kernel(y)
    assert {t.dtype for t in (y, *found)} == {torch.bfloat16}
    exact, exact_gradients = gradients(function, [x.detach().float().requires_grad_() for x in inputs])
    assert torch.equal(y, exact.bfloat16())
    for gradient, wanted in zip(found, exact_gradients, strict=True):
        assert relative_error(gradient, wanted) < 8e-3
    with torch.no_grad():
        strided = [torch.cat([x, x], -1)[..., : x.shape[-1]] for x in inputs]
        assert torch.equal(function(*strided), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_kernel(function(*inputs))


def test_strided_inputs_and_gradients(make):
    function, shapes = make(3, (4, 2), 40)
    inputs = draw(shapes, dtype=torch.float32)
    exact = gradients(function, inputs)[1]
    for strided in (
        [torch.cat([x, x], -1).detach()[..., : x.shape[-1]].requires_grad_() for x in inputs],
        [x.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_() for x in inputs],
        [x.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for x in inputs],
    ):
        assert not all(x.is_contiguous() for x in strided)
        for gradient, wanted in zip(gradients(function, strided)[1], exact, strict=True):
            torch.testing.assert_close(gradient, wanted)
    ones = torch.autograd.grad(function(*inputs).sum(), inputs)  # an expanded scalar flows back
    torch.testing.assert_close(ones, torch.autograd.grad(function(*(x.double() for x in inputs)).sum(), inputs))


def test_lazy_views_and_gradients_of_zero(make):
    function, shapes = make(2, (3,), 8)
    inputs = [x.detach() for x in draw(shapes, dtype=torch.float32)]
    exact = function(*inputs)
    negated = [torch._neg_view(-x) for x in inputs]
    assert all(x.is_neg() for x in negated)
    torch.testing.assert_close(function(*negated), exact)
    leaves = [x.requires_grad_() for x in inputs]
    nothing = torch._efficientzerotensor(exact.shape)
    assert not any(g.any() for g in torch.autograd.grad(function(*leaves), leaves, nothing))


def test_only_what_is_asked_for_has_a_gradient(make):
    function, shapes = make(2, (3,), 8)
    for asked in range(len(shapes)):
        inputs = [x.detach() for x in draw(shapes, dtype=torch.float32)]
        inputs[asked].requires_grad_()
        function(*inputs).sum().backward()
        assert [x.grad is not None for x in inputs] == [i == asked for i in range(len(inputs))]


def test_second_derivatives(make_smooth):
    function, shapes = make_smooth(2, (3,), 5)

    def second(dtype):
        inputs = draw(shapes, dtype=dtype)
        y, first = gradients(function, inputs, create_graph=True)
        return y, torch.autograd.grad(y.square().sum() + sum(g.square().sum() for g in first), inputs)

    (y, found), (_, wanted) = second(torch.float32), second(torch.float64)
    assert is_kernel(y)
    for gradient, exact in zip(found, wanted, strict=True):
        assert relative_error(gradient, exact) < 1e-5
    assert torch.autograd.gradcheck(function, draw(shapes))
    assert torch.autograd.gradgradcheck(function, draw(shapes))


def test_inputs_that_depend_on_each_other(make):
    """Each gets its own share alone, also where the derivative is to be differentiated again."""
    function, shapes = make(2, (), 6)

    def all_of(x):
        return function(*(x.expand(shape) * (1 + i) for i, shape in enumerate(shapes)))

    for create_graph in (False, True):
        found, wanted = (
            torch.autograd.grad(all_of(x).square().sum(), x, create_graph=create_graph)[0]
            for x in (torch.ones(1, requires_grad=True), torch.ones(1, dtype=torch.float64, requires_grad=True))
        )
        assert relative_error(found, wanted) < 1e-6


def test_many_gradients_at_once(make):
    function, shapes = make(2, (3,), 4)
    inputs = draw(shapes, dtype=torch.float32)
    y = function(*inputs)
    flowing = torch.randn(3, *y.shape)
    batched = torch.autograd.grad(y, inputs, flowing, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        for one, wanted in zip(batched, torch.autograd.grad(y, inputs, flowing[i], retain_graph=True), strict=True):
            torch.testing.assert_close(one[i], wanted)


def test_transforms_and_forward_mode(make_smooth):
    function, shapes = make_smooth(2, (3,), 4)
    inputs = [x.detach() for x in draw(shapes, dtype=torch.float32)]
    doubles = [x.double() for x in inputs]
    stacked = [torch.stack([x, 2 * x]) for x in inputs]
    mapped = torch.func.vmap(function)(*stacked)
    torch.testing.assert_close(mapped[1], function(*(2 * x for x in inputs)))
    _, moved = torch.func.jvp(function, tuple(inputs), tuple(inputs))
    exact = torch.func.jvp(function, tuple(doubles), tuple(doubles))[1]
    torch.testing.assert_close(moved.double(), exact, rtol=1e-5, atol=1e-5)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(x, x) for x in inputs]
        tangent = torch.autograd.forward_ad.unpack_dual(function(*duals)).tangent
        torch.testing.assert_close(tangent, moved)
    found = torch.func.grad(lambda x: function(x, *inputs[1:]).square().sum())(inputs[0])
    exact = torch.func.grad(lambda x: function(x, *doubles[1:]).square().sum())(doubles[0])
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_graphs_hold_the_plain_text(make):
    function, shapes = make(2, (3,), 4)
    inputs = draw(shapes, dtype=torch.float32)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, inputs), gradients(function, inputs))
    traced = torch.jit.trace(lambda *xs: function(*xs), [x.detach() for x in inputs])
    torch.testing.assert_close(traced(*inputs), function(*inputs))
    shape = function(*inputs).shape
    with FakeTensorMode() as mode:
        assert function(*map(mode.from_tensor, inputs)).shape == shape


def test_where_the_kernels_are_left_out(make, monkeypatch):
    function, shapes = make(2, (3,), 4)
    inputs = draw(shapes, dtype=torch.float32)
    with ops.use_backend("torch"):
        assert not is_kernel(function(*inputs))
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert not is_kernel(function(*inputs))
    monkeypatch.delenv("NUMBA_DISABLE_JIT")
    assert is_kernel(function(*inputs))
    halves = [x.detach().bfloat16().requires_grad_() for x in inputs]
    assert function(*halves).dtype is torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):  # which has its own mind about attention
        assert function(*inputs).dtype is (torch.bfloat16 if make is attention else torch.float32)
    meta = [x.detach().to("meta") for x in inputs]
    assert function(*meta).is_meta


def test_an_empty_batch(make):
    function, shapes = make(0, (3,), 4)
    y, found = gradients(function, draw(shapes, dtype=torch.float32))
    assert y.numel() == 0
    assert [g.shape for g in found] == shapes
    assert not any(g.any() for g in found)


def test_attention_between_grids_of_two_sizes():
    # Up to 16 of both, two heads share the lanes, the last one of an odd number with itself.
    sizes = ((2, 1, 5), (2, 33, 7), (2, 6, 66), (1, 9, 16), (3, 16, 16), (1, 17, 4), (1, 4, 17))
    for batch, queries, keys in sizes:
        q, k, v = draw([(batch, queries, 12), (batch, keys, 12), (batch, keys, 12)])
        exact = gradients(lambda q, k, v: attend(q, k, v, 3), [q, k, v])
        y, found = gradients(
            lambda q, k, v: attend(q, k, v, 3), [t.detach().float().requires_grad_() for t in (q, k, v)]
        )
        assert is_kernel(y)
        for one, wanted in zip((y, *found), (exact[0], *exact[1]), strict=True):
            assert relative_error(one, wanted) < 2e-6


def test_attention_as_it_was_chosen():
    inputs = draw([(2, 5, 8)] * 3, dtype=torch.float32)
    with sdpa_kernel(SDPBackend.MATH):
        y = attend(*inputs, 2)
        assert not is_kernel(y)
        assert torch.autograd.grad(y.square().sum(), inputs, create_graph=True)[0].requires_grad
    torch.testing.assert_close(attend(*inputs, 2), y)
    assert not is_kernel(attend(*(t.repeat(1, 1, 10) for t in inputs), 1))  # a head of 80
    halves = [t.detach().bfloat16().requires_grad_() for t in inputs]
    assert attend(*halves, 2).dtype is torch.bfloat16


def test_attention_to_what_is_far_away_or_no_number():
    q, k, v = (t.detach() for t in draw([(1, 3, 4)] * 3, dtype=torch.float32))
    for change in (1e4 * k, k.index_fill(1, torch.tensor([1]), float("nan")), 1e30 * k):
        exact = attend(q.double(), change.double(), v.double(), 2)
        torch.testing.assert_close(attend(q, change, v, 2).double(), exact, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_what_is_small_is_plain_text(make, monkeypatch):
    function, shapes = make(2, (8, 2), 16)
    inputs = draw(shapes, dtype=torch.float32)
    monkeypatch.setattr(fused.Fused, "least", inputs[0].numel())
    y, found = gradients(function, inputs)
    assert is_kernel(y)
    monkeypatch.setattr(fused.Fused, "least", inputs[0].numel() + 1)
    plain, exact = gradients(function, inputs)
    assert not is_kernel(plain)
    torch.testing.assert_close((y, *found), (plain, *exact))


def test_a_weight_of_another_width_goes_to_pytorch():
    with pytest.raises(RuntimeError, match=r"shape"):
        fused.rms_norm(torch.randn(3, 4, 8), torch.randn(7), EPS)


@pytest.mark.parametrize("value", [1e15, -1e15, float("nan")])
def test_large_values_and_nan(value):
    x = torch.tensor([[value, 3.0]]).requires_grad_()
    for function in (fused.gated_gelu, lambda x: fused.rms_norm(x, torch.ones(2, dtype=x.dtype), EPS)):
        y, (found,) = gradients(function, [x])
        z, (wanted,) = gradients(function, [x.detach().double().requires_grad_()])
        torch.testing.assert_close((y.double(), found.double()), (z, wanted), equal_nan=True, rtol=1e-5, atol=1e-5)


def test_a_number_more_of_threads_changes_nothing(make):
    function, shapes = make(2, (700,), 40)
    inputs = draw(shapes, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gradients(function, inputs)
        torch.set_num_threads(2)
        two = gradients(function, inputs)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0], two[0])
    assert all(map(torch.equal, one[1], two[1]))
