"""mamba-ssm, causal-conv1d and fla themselves, where they are installed, against this library's definition."""

import pytest
import torch
from support import relative_error, scan_inputs

from wavemamba.ops import causal_conv1d, gla_scan, selective_scan, ssd_scan

pytestmark = pytest.mark.cuda
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_order", [False, True])
def test_scan_of_mamba_ssm(device, dtype, with_order):
    pytest.importorskip("mamba_ssm")
    inputs = {k: v.to(device, dtype) for k, v in scan_inputs(length=300, width=64, state=16).items()}
    del inputs["initial_state"]
    order = torch.randperm(300, device=device) if with_order else None
    assert_agrees(selective_scan, inputs, TOLERANCE[dtype], delta_softplus=True, order=order)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [64, 12])
def test_convolution_of_causal_conv1d(device, dtype, channels):
    pytest.importorskip("causal_conv1d")
    inputs = {"x": torch.randn(2, 300, channels), "weight": torch.randn(channels, 4), "bias": torch.randn(channels)}
    inputs = {k: v.to(device, dtype) for k, v in inputs.items()}
    order = torch.randperm(300, device=device)
    assert_agrees(causal_conv1d, inputs, TOLERANCE[dtype], activation="silu", order=order)


@pytest.fixture
def tf32():
    """The chunked kernels multiply so."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def normal(device, dtype, **shapes):
    return {name: torch.randn(shape, device=device).to(dtype) for name, shape in shapes.items()}


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("package", ["mamba_ssm", "fla"])
def test_ssd_of_the_packages(device, dtype, package):
    pytest.importorskip(package)
    shared = (2, 300, 1, 32)
    inputs = normal(device, dtype, x=(2, 300, 4, 64), B=shared, C=shared, z=(2, 300, 4, 64), D=(4,))
    inputs["dt"], inputs["A"] = torch.rand(2, 300, 4, device=device), -torch.rand(4, device=device) - 0.1
    inputs["initial_state"] = torch.randn(2, 4, 64, 32, device=device)
    assert_agrees(ssd_scan, inputs, 2e-2, backend=package)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_ssd_of_packed_sequences(device, dtype):
    pytest.importorskip("mamba_ssm")
    inputs = normal(device, dtype, x=(2, 300, 4, 64), B=(2, 300, 1, 32), C=(2, 300, 1, 32))
    inputs["dt"], inputs["A"] = torch.rand(2, 300, 4, device=device), -torch.rand(4, device=device) - 0.1
    inputs["initial_state"] = torch.randn(2, 4, 64, 32, device=device)
    ids = (3 + torch.arange(300, device=device) // 110).expand(2, -1)
    assert_agrees(ssd_scan, inputs, 2e-2, backend="mamba_ssm", seq_idx=ids)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gla_of_fla(device, dtype):
    pytest.importorskip("fla")
    inputs = normal(device, dtype, q=(2, 300, 4, 32), k=(2, 300, 4, 32), v=(2, 300, 4, 64))
    inputs["log_decay"] = torch.nn.functional.logsigmoid(torch.randn(2, 300, 4, 32, device=device)) / 16
    inputs["initial_state"] = torch.randn(2, 4, 32, 64, device=device)
    assert_agrees(gla_scan, inputs, 2e-2, backend="fla")


def assert_agrees(op, inputs, tolerance, backend="mamba_ssm", **options):
    own = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    exact = {k: v.double().requires_grad_() for k, v in inputs.items()}
    y, expected = op(**own, **options, backend=backend), op(**exact, **options, backend="torch")
    assert relative_error(y, expected) < tolerance
    flowing = torch.randn_like(expected)
    gradients = torch.autograd.grad(y, list(own.values()), flowing.to(y.dtype))
    truths = torch.autograd.grad(expected, list(exact.values()), flowing.to(y.dtype).double())
    errors = {k: relative_error(g, t) for k, g, t in zip(inputs, gradients, truths, strict=True)}
    assert max(errors.values()) < tolerance, errors
