"""The CPU kernels under what PyTorch does to functions: compile, export, autocast, checkpointing, torch.func."""

import pytest
import torch
from support import scan_inputs
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from wavemamba import WavemambaError
from wavemamba.ops import causal_conv1d, selective_scan, to_haar_map
from wavemamba.ops.causal_conv1d.op import conv, conv_backward
from wavemamba.ops.haar.op import haar_map
from wavemamba.ops.selective_scan.op import scan, scan_backward

LENGTH, WIDTH = 8, 20
ORDER = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0))
PACKED = (torch.arange(LENGTH) >= torch.tensor([[3], [5]])).long()
INPUTS = {k: v.float() for k, v in scan_inputs(2, LENGTH, WIDTH, 4).items()}
NAMES = tuple(INPUTS)


def network(*values):
    """The three ops after each other, to one number."""
    inputs = dict(zip(NAMES, values, strict=True))
    inputs["u"] = causal_conv1d(inputs["u"], inputs["A"], inputs["D"], activation="silu", order=ORDER, backend="numba")
    y, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, order=ORDER, backend="numba")
    bands = to_haar_map(y.unflatten(1, (4, 2)), 1, "mosaic", backend="numba")
    return bands.square().sum() + last.sin().sum()


def value_and_gradients(function):
    values = [v.clone().requires_grad_() for v in INPUTS.values()]
    result = function(*values)
    return result.detach(), torch.autograd.grad(result, values)


def assert_same(function, tolerance=1e-5):
    value, gradients = value_and_gradients(function)
    expected, truths = value_and_gradients(network)
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    for gradient, truth in zip(gradients, truths, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(dynamic):
    torch._dynamo.reset()
    assert_same(torch.compile(network, fullgraph=True, dynamic=dynamic, backend="aot_eager"))


@pytest.mark.slow
def test_compiles_with_inductor():
    torch._dynamo.reset()
    assert_same(torch.compile(network, fullgraph=True))


class Scan(torch.nn.Module):
    def forward(self, u, delta, A, B, C):
        return selective_scan(u, delta, A, B, C, delta_softplus=True, backend="numba")


def test_exports_with_any_length():
    inputs = {k: INPUTS[k] for k in ("u", "delta", "A", "B", "C")}
    length = torch.export.Dim("length", min=2, max=1000)
    shapes = {k: None if k == "A" else {1: length} for k in inputs}
    program = torch.export.export(Scan(), (), inputs, dynamic_shapes=shapes)
    longer = {k: v if k == "A" else torch.cat([v] * 9, dim=1) for k, v in inputs.items()}
    assert torch.equal(program.module()(**longer), Scan()(**longer))


def test_autocast_runs_mixed_dtypes():
    values = [v.clone().requires_grad_() for v in INPUTS.values()]
    with torch.autocast("cpu", torch.bfloat16):
        weight = torch.eye(WIDTH)
        result = network(torch.nn.functional.linear(values[0], weight), *values[1:])
    gradients = torch.autograd.grad(result, values)
    assert all(g.dtype == torch.float32 for g in gradients)
    expected, _ = value_and_gradients(network)
    assert abs(result - expected) < 0.02 * abs(expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    values = [v.clone().requires_grad_() for v in INPUTS.values()]
    checkpoint(network, *values, use_reentrant=reentrant).backward()
    _, truths = value_and_gradients(network)
    assert all(torch.equal(value.grad, truth) for value, truth in zip(values, truths, strict=True))


def test_torch_func_grad():
    gradients = torch.func.grad(network, argnums=tuple(range(len(NAMES))))(*INPUTS.values())
    _, truths = value_and_gradients(network)
    assert all(torch.equal(gradient, truth) for gradient, truth in zip(gradients, truths, strict=True))


def test_vmap_of_values_and_of_gradients():
    u, *rest = INPUTS.values()
    batched = torch.stack([u, 2 * u, u - 1])

    def function(u):
        return network(u, *rest)

    for mapped in (function, torch.func.grad(function)):
        expected = torch.stack([mapped(part) for part in batched])
        torch.testing.assert_close(torch.vmap(mapped)(batched), expected, rtol=1e-6, atol=1e-6)


def scan_sum(u):
    return selective_scan(u, *list(INPUTS.values())[1:5], delta_softplus=True, backend="numba").sin().sum()


def conv_sum(u):
    return causal_conv1d(u, INPUTS["A"], activation="silu", backend="numba").sin().sum()


@pytest.mark.parametrize("function", [scan_sum, conv_sum])
def test_second_derivative_is_refused(function):
    u = INPUTS["u"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(u), u, create_graph=True)
    with pytest.raises(WavemambaError, match=r"no second derivative.*backend='torch'"):
        torch.autograd.grad(gradient.sum(), u)
    with pytest.raises(WavemambaError, match="no second derivative"):
        torch.func.grad(lambda u: torch.func.grad(function)(u).sum())(u.detach())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("function", [scan_sum, conv_sum])
def test_forward_mode_is_refused(function):
    u = INPUTS["u"]
    with forward_ad.dual_level(), pytest.raises(WavemambaError, match="no forward-mode derivative"):
        function(forward_ad.make_dual(u, u))
    with pytest.raises(WavemambaError, match="no forward-mode derivative"):
        torch.func.jvp(function, (u,), (u,))


def test_opcheck_of_the_scan():
    u, delta, A, B, C, D, z, bias, initial = (v.requires_grad_() for v in map(torch.clone, INPUTS.values()))
    opcheck(scan.op, (u, delta, A, B, C, D, z, bias, True, initial, ORDER, None, True, "numba"))
    opcheck(scan.op, (u, delta, A, B, C, None, None, None, False, None, None, PACKED, True, "numba"))
    with torch.no_grad():
        arguments = (u, delta, A, B, C, D, z, bias, True, initial, ORDER, PACKED)
        y, last, kept = scan.op(*arguments, True, "numba")
        opcheck(scan_backward.op, (y, last, kept, *arguments, "numba"))
        opcheck(scan_backward.op, (y, None, kept[:0], *arguments, "numba"))


def test_opcheck_of_the_convolution():
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((2, 5, 3), (3, 4), (3,)))
    state = torch.randn(2, 3, 3, requires_grad=True)
    order, packed = torch.randperm(5), torch.tensor([[0, 0, 0, 1, 1], [0, 1, 2, 2, 2]])
    opcheck(conv.op, (x, weight, bias, True, state, order, packed, "numba"))
    opcheck(conv.op, (x, weight, None, False, None, None, None, "numba"))
    with torch.no_grad():
        opcheck(conv_backward.op, (x, x, weight, bias, True, state, order, packed, "numba"))


def test_opcheck_of_the_haar_map():
    x = torch.randn(1, 4, 8, 3, requires_grad=True)
    for inverse in (False, True):
        opcheck(haar_map.op, (x, 2, "channel", 0.25, inverse, "numba"))
    opcheck(haar_map.op, (x, 1, "mosaic", 1.0, False, "numba"))


def map_of(u):
    return to_haar_map(u.unflatten(1, (4, 2)), 1, "mosaic", backend="numba")


def scan_of(u):
    return selective_scan(u, *list(INPUTS.values())[1:5], delta_softplus=True, backend="numba")


def conv_of(u):
    return causal_conv1d(u, INPUTS["A"], activation="silu", backend="numba")


@pytest.mark.parametrize("function", [scan_of, conv_of, map_of])
def test_batched_gradients(function):
    u = INPUTS["u"].clone().requires_grad_()
    y = function(u)
    flowing = torch.randn(3, *y.shape)
    (batched,) = torch.autograd.grad(y, u, flowing, is_grads_batched=True, retain_graph=True)
    for gradient, one in zip(batched, flowing, strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(y, u, one, retain_graph=True)[0])


@pytest.mark.parametrize("function", [scan_of, conv_of, map_of])
def test_jacobians(function):
    u = INPUTS["u"][:1]

    def some(u):
        return function(torch.cat([u, INPUTS["u"][1:]]))[0, :, :2]

    expected = torch.autograd.functional.jacobian(some, u)
    torch.testing.assert_close(torch.autograd.functional.jacobian(some, u, vectorize=True), expected)
    torch.testing.assert_close(torch.func.jacrev(some)(u), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.hessian])
@pytest.mark.parametrize("function", [scan_sum, conv_sum])
def test_what_needs_forward_mode_is_refused(function, transform):
    with pytest.raises(WavemambaError, match="no forward-mode derivative"):
        transform(function)(INPUTS["u"])


@pytest.mark.parametrize("in_dims", [0, 1])
def test_vmap_of_a_compiled_and_a_plain_op(in_dims):
    """Public reports tell of wrong numbers and of failures where a custom op was mapped inside a compiled function."""
    u = torch.randn(3, 3, LENGTH, WIDTH)

    def mapped(u):
        return torch.vmap(conv_of, in_dims=in_dims)(u)

    expected = torch.stack([conv_of(part) for part in u.unbind(in_dims)])
    torch._dynamo.reset()
    torch.testing.assert_close(mapped(u), expected)
    torch.testing.assert_close(torch.compile(mapped, backend="aot_eager")(u), expected)


def test_the_expanded_gradient_of_a_compiled_function():
    """A sum sends a gradient whose strides are all zero, through a compiled graph too."""
    u = INPUTS["u"].clone().requires_grad_()
    torch._dynamo.reset()
    torch.compile(scan_of, backend="aot_eager")(u).sum().backward()
    (expected,) = torch.autograd.grad(scan_of(v := INPUTS["u"].clone().requires_grad_()).sum(), v)
    torch.testing.assert_close(u.grad, expected)
