"""mamba-ssm and causal-conv1d themselves, where they are installed, against this library's definition."""

import pytest
import torch
from support import relative_error, scan_inputs

from wavemamba.ops import causal_conv1d, selective_scan

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


def assert_agrees(op, inputs, tolerance, **options):
    own = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    exact = {k: v.double().requires_grad_() for k, v in inputs.items()}
    y, expected = op(**own, **options, backend="mamba_ssm"), op(**exact, **options, backend="torch")
    assert relative_error(y, expected) < tolerance
    flowing = torch.randn_like(expected)
    gradients = torch.autograd.grad(y, list(own.values()), flowing.to(y.dtype))
    truths = torch.autograd.grad(expected, list(exact.values()), flowing.to(y.dtype).double())
    errors = {k: relative_error(g, t) for k, g, t in zip(inputs, gradients, truths, strict=True)}
    assert max(errors.values()) < tolerance, errors
