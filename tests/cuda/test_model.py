"""A whole model on a GPU: the CPU's numbers, one graph, no waiting for the GPU, captured as a CUDA graph."""

import pytest
import torch
from support import relative_error

import wavemamba
from wavemamba.diffusion import ClassifierFreeGuidance

pytestmark = pytest.mark.cuda


@pytest.fixture(params=["full", "window", "linear_attention"])
def model(request):
    torch.manual_seed(0)
    linear = {} if request.param == "full" else {"fusion": request.param, "attention": request.param}
    model = wavemamba.create_model("dimsum_tiny", **linear).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zero-initialised layers would hide a wrong answer
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model


@pytest.fixture
def arguments(model):
    config = model.config
    x = torch.randn(3, config.in_chans, *config.img_size)
    return x, torch.rand(3), torch.randint(config.num_classes, (3,))


def gradients(model, x, t, y, run=None):
    loss = (run or model)(x, t, y).float().square().mean()
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def on(device, tensors):
    return [tensor.to(device) for tensor in tensors]


def test_agrees_with_the_cpu(model, arguments, device):
    expected = gradients(model, *arguments)
    results = gradients(model.to(device), *on(device, arguments))
    for result, truth in zip(results, expected, strict=True):
        assert relative_error(result.cpu(), truth) < 1e-3


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(model, arguments, device, mode):
    model, arguments = model.to(device), on(device, arguments)
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for _ in range(3):  # CUDA graphs record on the second call
        results = [value.clone() for value in gradients(model, *arguments, run=compiled)]
    for result, truth in zip(results, gradients(model, *arguments), strict=True):
        assert relative_error(result, truth) < 1e-3


def test_autocast(model, arguments, device):
    model, arguments = model.to(device), on(device, arguments)
    with torch.no_grad():
        expected = model(*arguments)
        with torch.autocast("cuda", torch.bfloat16):
            assert relative_error(model(*arguments), expected) < 0.03


def test_never_waits_for_the_gpu(model, arguments, device):
    model, arguments = model.to(device), on(device, arguments)
    gradients(model, *arguments)  # places the scan orders, compiles the kernels
    guided = ClassifierFreeGuidance(model, 2.0)
    guided(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(model, *arguments)
        guided(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_captured_in_a_cuda_graph(model, arguments, device):
    model, (x, t, y) = model.to(device), on(device, arguments)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            gradients(model, x, t, y)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(model, x, t, y)
    x.mul_(-0.5)
    graph.replay()
    for result, expected in zip(captured, gradients(model, x, t, y), strict=True):
        assert relative_error(result, expected) < 1e-4


def test_on_a_device_that_is_not_the_current_one(model, arguments, device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.no_grad():
        expected = model.to(device)(*on(device, arguments))
        second = torch.device("cuda:1")
        assert relative_error(model.to(second)(*on(second, arguments)).cpu(), expected.cpu()) < 1e-3
