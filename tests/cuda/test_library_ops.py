"""The Triton kernels as torch.library ops: compile, export, autocast, checkpointing, function transforms, graphs."""

import pytest
import torch
from support import relative_error, scan_inputs
from torch.utils.checkpoint import checkpoint

from wavemamba import scan_order
from wavemamba.errors import WavemambaError
from wavemamba.ops import causal_conv1d, selective_scan, to_haar_map, use_backend
from wavemamba.ops.causal_conv1d.op import conv
from wavemamba.ops.haar.op import haar_map
from wavemamba.ops.selective_scan.op import scan


class Block(torch.nn.Module):
    """Convolution, scan and packet map, each in an order of its own."""

    def __init__(self, device):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(4, 3, generator=generator))
        self.rate = torch.nn.Parameter(-torch.rand(4, 2, generator=generator) - 0.1)
        self.order = scan_order("snake").permutation(2, 4, device)  # known to be one: looked at without a wait
        self.to(device)

    def forward(self, x):
        with use_backend("triton"):
            y = causal_conv1d(x, self.weight, activation="silu", order=self.order)
            y = selective_scan(y, y, self.rate, y[..., :2], y[..., 2:], z=x, delta_softplus=True, order=self.order)
            return to_haar_map(y.unflatten(1, (2, 4)), 1, "mosaic")


def gradients(module, x, function=None):
    x = x.detach().clone().requires_grad_()
    y = module(x) if function is None else function(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, module.weight, module.rate])]


@pytest.fixture
def block(device):
    return Block(device)


@pytest.fixture
def x(device):
    return torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(1)).to(device)


def test_compiles_into_one_graph(block, x, sizes):
    compiled = torch.compile(block, fullgraph=True, backend=sizes("aot_eager", "inductor"))
    for result, expected in zip(gradients(block, x, compiled), gradients(block, x), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_exports(block, x):
    program = torch.export.export(block, (x,))
    torch.testing.assert_close(program.module()(x), block(x))


def test_activation_checkpointing(block, x):
    def function(x):
        return checkpoint(block, x, use_reentrant=False)

    for result, expected in zip(gradients(block, x, function), gradients(block, x), strict=True):
        assert torch.equal(result, expected)


def test_autocast(block, x):
    with torch.autocast(x.device.type, torch.bfloat16):
        results = gradients(block, x)
    assert all(relative_error(a, b) < 0.02 for a, b in zip(results, gradients(block, x), strict=True))


def test_states_are_kept_for_a_gradient_alone(device):
    inputs = {k: v.float().to(device).requires_grad_() for k, v in scan_inputs(length=4).items()}
    rows = []  # states are kept as one row
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: rows.append(t.numel() if t.dim() == 1 else 0) or t, lambda t: t
    ):
        with torch.no_grad():
            assert selective_scan(**inputs, delta_softplus=True, backend="triton").grad_fn is None
        assert not rows
        selective_scan(**inputs, delta_softplus=True, backend="triton")
    assert max(rows) >= inputs["A"].numel()


def test_second_derivative_is_refused(device):
    inputs = {k: v.float().to(device).requires_grad_() for k, v in scan_inputs(length=3).items()}
    y = selective_scan(**inputs, delta_softplus=True, backend="triton")
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs["u"], create_graph=True)
    with pytest.raises(WavemambaError, match="second derivative"):
        gradient.sum().backward()

    x, weight = torch.randn(1, 4, 3, device=device, requires_grad=True), torch.randn(3, 2, device=device)
    y = causal_conv1d(x, weight, backend="triton")
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(WavemambaError, match="second derivative"):
        gradient.sum().backward()


def test_function_transforms(block, x, device):
    _, expected, *_ = gradients(block, x)
    gradient = torch.func.grad(lambda x: block(x).square().sum())(x)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn(4, 2, device=device)
    mapped = torch.func.vmap(lambda x: causal_conv1d(x[None], weight, backend="triton")[0])(x)
    torch.testing.assert_close(mapped, causal_conv1d(x, weight, backend="triton"))


def test_registrations(device):
    """PyTorch's own check of schema, fake tensors, autograd and tracing with symbolic sizes."""
    sizes = {"batch": 1, "length": 3, "width": 2, "state": 2}
    inputs = {k: v.float().to(device).requires_grad_() for k, v in scan_inputs(**sizes).items()}
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    order, seq_idx = torch.randperm(3).to(device), torch.tensor([[0, 1, 1]], device=device)
    arguments = (*(inputs[k] for k in names), True, inputs["initial_state"], order, seq_idx, True, "triton")
    torch.library.opcheck(scan.op, arguments)
    x, weight = torch.randn(1, 3, 6, device=device, requires_grad=True), torch.randn(6, 2, device=device)
    torch.library.opcheck(conv.op, (x, weight, None, True, None, order, seq_idx, "triton"))
    image = torch.randn(1, 2, 4, 4, device=device, requires_grad=True)
    torch.library.opcheck(haar_map.op, (image, 1, "channel", 0.5, False, "triton"))


@pytest.mark.cuda
def test_captured_in_a_cuda_graph(block, x):
    x = x.requires_grad_()
    parameters = [x, block.weight, block.rate]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            torch.autograd.grad(block(x).square().sum(), parameters)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = block(x)
        captured = torch.autograd.grad(y.square().sum(), parameters)
    with torch.no_grad():
        x.mul_(-0.5)
    graph.replay()
    for result, expected in zip((y, *captured), gradients(block, x), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.cuda
def test_no_synchronisation(block, x):
    block(x)
    x = x.requires_grad_()
    with torch.cuda.device(x.device):
        torch.cuda.set_sync_debug_mode("error")
        try:
            block(x).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_automatic_choice_on_a_gpu(x):
    weight = torch.randn(4, 2, device=x.device)
    assert torch.equal(causal_conv1d(x, weight), causal_conv1d(x, weight, backend="triton"))
