"""Each kind of attention against its equation in float64, on any grid, and what its tokens must not see."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import relative_error
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from wavemamba import ConfigError, ShapeError, SharedAttention, SpatialFrequencyFusion
from wavemamba.layers import FullAttention, LinearAttention, SelfAttention, WindowAttention, attend

GRIDS = [(1, 1), (1, 5), (3, 7), (4, 4), (6, 10), (8, 8), (13, 2)]
HEADS, WIDTH = 3, 12


def inputs(grid, batch=2, dtype=torch.float64, width=WIDTH):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, math.prod(grid), width, dtype=dtype, generator=generator) for _ in range(3)]


def masked(q, k, v, heads, allowed):
    """Softmax over the tokens that `allowed` (L, L) marks, written out; no row may be without."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~allowed, -torch.inf)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def seen(grid, window, shift):
    """(L, L): whether a token sees another, which lies no farther on either axis than the nearest cut."""

    def on_an_axis(size):
        cuts = [] if size <= window else [cut - 0.5 for cut in range(shift or window, size, window)]
        far = torch.tensor([min((abs(place - cut) for cut in cuts), default=size) for place in range(size)])
        places = torch.arange(size)
        return (places[:, None] - places).abs() < far[:, None]

    rows, columns = (on_an_axis(size) for size in grid)
    return (rows[:, None, :, None] & columns[None, :, None]).reshape(math.prod(grid), -1)


def linear(q, k, v, heads):
    """Every pair of tokens, weighed by the product of their features."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    q, k = (F.elu(t.clamp(min=-14)) + 1 for t in (q, k))
    weights = q @ k.transpose(-2, -1)
    return (weights / weights.sum(dim=-1, keepdim=True) @ v).transpose(1, 2).flatten(2)


class Results(TorchDispatchMode):
    """Counts the numbers that all operations return."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        tensors = [t for t in torch.utils._pytree.tree_leaves(results) if isinstance(t, torch.Tensor)]
        self.numbers += sum(t.numel() for t in tensors)
        return results


def gradients(call, tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = call(*leaves)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y, *torch.autograd.grad((y * weight).sum(), leaves)]


KINDS = {
    "full": (FullAttention(), lambda grid: lambda q, k, v: masked(q, k, v, HEADS, seen(grid, 100, 0))),
    "windows": (WindowAttention(4, 0), lambda grid: lambda q, k, v: masked(q, k, v, HEADS, seen(grid, 4, 0))),
    "windows, shifted": (
        WindowAttention(4, 3),
        lambda grid: lambda q, k, v: masked(q, k, v, HEADS, seen(grid, 4, 3)),
    ),
    "windows, of both": (
        WindowAttention(4),
        lambda grid: (
            lambda q, k, v: torch.cat(
                [
                    masked(q[..., :4], k[..., :4], v[..., :4], 1, seen(grid, 4, 0)),
                    masked(q[..., 4:], k[..., 4:], v[..., 4:], 2, seen(grid, 4, 2)),
                ],
                dim=-1,
            )
        ),
    ),
    "windows of one": (WindowAttention(1), lambda grid: lambda q, k, v: v + 0 * (q + k)),
    "linear": (LinearAttention(), lambda grid: lambda q, k, v: linear(q, k, v, HEADS)),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_every_gradient_are_those_of_the_equation(kind, grid):
    module, reference = KINDS[kind]
    expected = gradients(reference(grid), inputs(grid))
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)):
        tensors = [t.to(dtype) for t in inputs(grid)]
        wanted = expected if dtype == torch.float64 else gradients(reference(grid), [t.double() for t in tensors])
        for got, exact in zip(gradients(lambda *t: module(*t, HEADS, grid), tensors), wanted, strict=True):
            assert got.dtype == dtype
            scale = exact.norm() + 0.1 * expected[0].norm()  # the gradients of a token alone are zero
            assert (got.double() - exact).norm() < bound * scale


@pytest.mark.parametrize("kind", ["windows, of both", "linear"])
def test_gradcheck(kind):
    module, tensors = KINDS[kind][0], [t.requires_grad_() for t in inputs((5, 3), batch=1, width=6)]
    assert torch.autograd.gradcheck(lambda *t: module(*t, HEADS, (5, 3)), tensors)


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_nothing_leaks_into_a_window(shift):
    """What a token does not see may be anything, and so may other samples."""
    grid, window = (11, 9), 4
    q, k, v = inputs(grid)
    module = WindowAttention(window, shift)
    expected = module(q, k, v, HEADS, grid)
    for token in range(math.prod(grid)):
        inside = seen(grid, window, shift)[token][:, None] & torch.tensor([True, False])[:, None, None]
        k_poisoned, v_poisoned = (torch.where(inside, t, 1e30) for t in (k, v))
        y = module(q, k_poisoned, v_poisoned, HEADS, grid)
        assert torch.equal(y[0, token], expected[0, token])


@pytest.mark.parametrize("shift", [0, 2])
def test_the_padding_is_nobodys_key(shift):
    """Each token with those that it sees alone, where nothing is padded."""
    grid, window = (10, 7), 4
    q, k, v = inputs(grid)
    y = WindowAttention(window, shift)(q, k, v, HEADS, grid)
    for token, inside in enumerate(seen(grid, window, shift)):
        alone = attend(q[:, [token]], k[:, inside], v[:, inside], HEADS)
        assert relative_error(y[:, [token]], alone) < 1e-12


def test_a_grid_within_a_window_is_attended_in_full():
    q, k, v = inputs((7, 8))
    assert relative_error(WindowAttention(8, 4)(q, k, v, HEADS, (7, 8)), attend(q, k, v, HEADS)) < 1e-12


@pytest.mark.parametrize("shift", [0, 3, 4])
def test_what_is_smooth_comes_out_smooth(shift):
    """Where all keys are alike, a plane of values comes out as it went in, cuts or not, but near the border."""
    grid = (40, 48)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    v = (0.3 * rows - 0.7 * columns)[None, ..., None].expand(-1, -1, -1, WIDTH).flatten(1, 2)
    y = WindowAttention(8, shift)(torch.zeros_like(v), torch.zeros_like(v), v, HEADS, grid).unflatten(1, grid)
    inner = slice(8, 32), slice(8, 40)
    assert torch.allclose(y[0][inner], v.unflatten(1, grid)[0][inner], atol=1e-12)


def test_tokens_on_both_sides_of_a_cut_meet_under_the_other_shift():
    grid = (16, 16)
    q, k, v = inputs(grid, batch=1)
    v.requires_grad_()
    tokens = WindowAttention(8)(q, k, v, HEADS, grid)
    (gradient,) = torch.autograd.grad(tokens.unflatten(1, grid)[0, 7, 7].sum(), v)
    reached = gradient.unflatten(1, grid)[0].abs().sum(dim=-1) > 0
    assert reached[4:11, 4:11].all()
    assert int(reached.sum()) == 7 * 7


def test_linear_attention_weighs_by_numbers_above_zero_that_sum_to_one():
    """Values of one come out as one, however far queries and keys are from zero, and in 16 bits."""
    for scale in (1e-3, 1.0, 1e3):
        q, k, _ = inputs((9, 7), dtype=torch.float32)
        y = LinearAttention()(scale * q, scale * k, torch.ones_like(q), HEADS, (9, 7))
        assert torch.allclose(y, torch.ones_like(y), atol=1e-6)
    v = inputs((9, 7))[2].half()
    far = torch.full_like(v, -60000)
    y = LinearAttention()(far, far, v, HEADS, (9, 7))
    assert torch.allclose(y.float(), v.float().mean(dim=1, keepdim=True).expand_as(y), atol=1e-3)


def test_the_feature_of_zero_has_the_slope_of_its_neighbours():
    """Queries and keys are exactly zero where a layer starts at zero."""
    slopes = []
    for place in (-1e-6, 0.0, 1e-6):
        q = torch.full((1, 4, WIDTH), place, dtype=torch.float64, requires_grad=True)
        k, v = inputs((2, 2), batch=1)[1:]
        slopes.append(torch.autograd.grad(LinearAttention()(q, k, v, HEADS, (2, 2)).square().sum(), q)[0])
    assert torch.allclose(slopes[1], slopes[0], rtol=1e-4)
    assert torch.allclose(slopes[1], slopes[2], rtol=1e-4)


def test_sums_of_linear_attention_are_float32_under_autocast():
    """In bfloat16 the sum of a few hundred features has no more digits for the next one."""
    grid = (64, 64)
    q, k, v = (t.float() for t in inputs(grid, batch=1))
    exact = linear(q.double(), k.double(), v.double(), HEADS)
    with torch.autocast("cpu", torch.bfloat16):
        y = LinearAttention()(q, k, v, HEADS, grid)
        assert y.dtype == torch.float32
        assert relative_error(y, exact) < 1e-5
        half = LinearAttention()(q.bfloat16(), k.bfloat16(), v.bfloat16(), HEADS, grid)
    assert half.dtype == torch.bfloat16
    rounded = linear(*(t.bfloat16().double() for t in (q, k, v)), HEADS)
    assert relative_error(half, rounded) < 4e-3


@pytest.mark.parametrize("attention", [WindowAttention(4), WindowAttention(4, 3), LinearAttention()], ids=repr)
def test_operations_and_results_are_linear_in_the_tokens(attention):
    """No more a token, forward and backward, on sixteen times the tokens; full attention takes more."""

    def cost(module, side):
        tensors = [t.requires_grad_() for t in inputs((side, side), batch=1, dtype=torch.float32)]
        with sdpa_kernel(SDPBackend.MATH), Results() as results, FlopCounterMode(display=False) as flops:
            module(*tensors, HEADS, (side, side)).sum().backward()
        return flops.get_total_flops() / side**2, results.numbers / side**2

    small, large = cost(attention, 16), cost(attention, 64)
    assert large[0] <= small[0]
    assert large[1] <= small[1]
    assert all(more > 8 * less for more, less in zip(cost(FullAttention(), 64), cost(FullAttention(), 16), strict=True))


@pytest.mark.parametrize("shift", [0, 3])
def test_a_graph_serves_every_grid(shift):
    """Padded or not, cut or within a window."""
    plain, counter = SelfAttention(WIDTH, HEADS, WindowAttention(4, shift)), CompileCounter()
    layer = torch.compile(plain, fullgraph=True, dynamic=True, backend=counter)
    for grid in ((9, 14), (8, 12), (6, 5), (3, 7), (12, 8), (2, 3), (4, 4), (16, 20)):
        x = torch.randn(2, math.prod(grid), WIDTH)
        assert relative_error(layer(x, grid), plain(x, grid)) < 1e-6
    assert counter.frame_count == 1


class Nearest(torch.nn.Module):
    """One's own: every token takes the value of itself and of the token before."""

    def forward(self, q, k, v, num_heads, grid):
        assert v.shape[1] == grid[0] * grid[1]
        return (v + v.roll(1, dims=1)) / num_heads


def test_an_attention_of_ones_own_is_injected_everywhere():
    x = torch.randn(2, 4, 5, WIDTH)
    halves = x.chunk(2, dim=-1)
    for mode in ("cross", "swap_k"):
        assert SpatialFrequencyFusion(WIDTH, 2, mode=mode, attend=Nearest())(*halves).shape == x.shape
    block = SharedAttention(WIDTH, attention=SelfAttention(WIDTH, 2, Nearest()))
    assert block(x).shape == x.shape

    class OnTheGrid(torch.nn.Module):
        takes_grid = True

        def forward(self, x, grid):
            return x.unflatten(1, grid).flip(1).flatten(1, 2)

    assert SharedAttention(WIDTH, attention=OnTheGrid())(x).shape == x.shape


def test_modes_are_the_kinds_by_name():
    assert isinstance(SpatialFrequencyFusion(8, mode="window").attend, WindowAttention)
    assert isinstance(SpatialFrequencyFusion(8, mode="Linear-Attention").attend, LinearAttention)
    assert isinstance(SharedAttention(8, mode="window").attention.attend, WindowAttention)
    assert isinstance(SharedAttention(8, mode="linear_attention").attention.attend, LinearAttention)
    assert isinstance(SharedAttention(8).attention.attend, FullAttention)
    assert not any(p.numel() for kind, _ in KINDS.values() for p in kind.parameters())
    torch.manual_seed(0)
    windows = SharedAttention(8, mode="window")
    full = SharedAttention(8)
    full.load_state_dict(windows.state_dict())
    x = torch.randn(1, 8, 7, 8)
    torch.testing.assert_close(windows(x), full(x))
    assert "WindowAttention(window=8, shift=(0, 4))" in repr(windows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WindowAttention(0), "window: expected an int >= 1, got 0"),
        (lambda: WindowAttention(4, 4), "shift: expected ints from 0 to window - 1 = 3, got 4"),
        (lambda: WindowAttention(4, -1), "shift: "),
        (lambda: WindowAttention(4, ()), "shift: "),
        (lambda: WindowAttention(4, 1.0), "shift: "),
        (
            lambda: SelfAttention(8, 2, torch.nn.Identity()),
            r"attend\(q, k, v, num_heads, grid\), got Identity",
        ),
        (lambda: SpatialFrequencyFusion(8, attend=WindowAttention), "attend: .*the class WindowAttention; build it"),
        (lambda: SpatialFrequencyFusion(8, mode="linear", attend=FullAttention()), "attend: expected None with mode"),
        (lambda: SpatialFrequencyFusion(8, mode="window", attend=FullAttention()), "attend: expected None with mode"),
        (lambda: SharedAttention(8, mode="windows"), "did you mean 'window'"),
        (lambda: SharedAttention(8, mode="window", attention=SelfAttention(8, 2)), "mode: expected 'full'"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_result_of_another_shape_is_named():
    class Half(torch.nn.Module):
        def forward(self, q, k, v, num_heads, grid):
            return v[:, ::2]

    x = torch.randn(1, 2, 2, 8)
    with pytest.raises(ShapeError, match="attend's result: expected"):
        SpatialFrequencyFusion(16, attend=Half())(x, x)
    with pytest.raises(ShapeError, match="attend's result: expected"):
        SelfAttention(8, 2, Half())(x.flatten(1, 2))
