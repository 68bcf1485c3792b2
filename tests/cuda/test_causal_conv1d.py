"""The Triton convolution against the definition in float64: output and every gradient."""

import pytest
import torch
from support import relative_error

from wavemamba.ops import causal_conv1d

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def conv_inputs(dtype=torch.float32, batch=2, length=9, width=4, channels=20):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "x": (batch, length, channels),
        "weight": (channels, width),
        "bias": (channels,),
        "initial_state": (batch, width - 1, channels),
    }
    return {k: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for k, s in shapes.items()}


def differentiate(inputs, backend, **options):
    y = causal_conv1d(**inputs, **options, backend=backend)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device, torch.bfloat16).to(y.dtype)
    gradients = torch.autograd.grad(y, list(inputs.values()), dy)
    return {"y": y} | {f"d{k}": g for k, g in zip(inputs, gradients, strict=True)}


def assert_agrees(inputs, device, tolerance=TOLERANCE[torch.float32], order=None, **options):
    order = None if order is None else order.to(device)
    own = {k: v.to(device).requires_grad_() for k, v in inputs.items()}
    exact = {k: v.detach().double().requires_grad_() for k, v in own.items()}
    results = differentiate(own, "triton", order=order, **options)
    expected = differentiate(exact, "torch", order=order, **options)
    errors = {k: relative_error(results[k], expected[k]) for k in results if results[k].numel()}
    assert max(errors.values()) < tolerance, errors
    for name, value in inputs.items():
        assert results[f"d{name}"].dtype == value.dtype
        assert results[f"d{name}"].shape == value.shape


@pytest.mark.parametrize("with_order", [False, True])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_every_length_and_order(device, sizes, length, with_order):
    length = sizes(length, {1: 1, 2: 129, 40: 2051}[length])
    inputs = conv_inputs(length=length, channels=sizes(20, 300))
    assert_agrees(inputs, device, activation="silu", order=torch.randperm(length) if with_order else None)


@pytest.mark.parametrize("width", [1, 2, 3, 7])
@pytest.mark.parametrize("channels", [1, 17, 130])
def test_every_width_and_channel_count(device, width, channels):
    assert_agrees(conv_inputs(batch=1, length=5, width=width, channels=channels), device, activation="silu")


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("absent", [("bias",), ("initial_state",), ("bias", "initial_state")], ids="+".join)
def test_optional_parts_absent(device, absent, activation):
    inputs = {k: v for k, v in conv_inputs().items() if k not in absent}
    assert_agrees(inputs, device, activation=activation)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(device, sizes, dtype):
    inputs = conv_inputs(dtype, length=sizes(6, 300), channels=sizes(10, 512))
    inputs["weight"] = inputs["weight"].float()
    assert_agrees(inputs, device, TOLERANCE[dtype], activation="silu", order=torch.randperm(sizes(6, 300)))


def test_strided_inputs_among_poisoned_memory(device):
    tensors = {k: v.to(device) for k, v in conv_inputs(length=5, channels=6).items()}
    views = {
        "x": torch.full((2, 7, 15), torch.nan, device=device)[:, 1:-1, 2:8],
        "weight": torch.full((4, 6), torch.nan, device=device).T,
        "bias": torch.full((12,), torch.nan, device=device)[::2],
        "initial_state": torch.full((2, 6, 3), torch.nan, device=device).transpose(1, 2),
    }
    for name, view in views.items():
        view.copy_(tensors[name])
    results = differentiate({k: v.detach().requires_grad_() for k, v in views.items()}, "triton", activation="silu")
    expected = differentiate({k: v.requires_grad_() for k, v in tensors.items()}, "triton", activation="silu")
    for name, result in results.items():
        torch.testing.assert_close(result, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("with_order", [False, True])
@pytest.mark.parametrize("width", [1, 4])
def test_packed_sequences(device, sizes, width, with_order):
    length = sizes(40, 2051)
    inputs = conv_inputs(length=length, width=width, channels=sizes(5, 300))
    seq_idx = (torch.arange(length) * torch.tensor([[9], [20]])).div(length, rounding_mode="floor")
    order = torch.randperm(length) if with_order else None
    assert_agrees(inputs, device, activation="silu", order=order, seq_idx=seq_idx.to(device))


def test_nan_stays_in_its_channel_and_window(device):
    inputs = {k: v.to(device) for k, v in conv_inputs(batch=1).items()}
    inputs["x"][0, 2, 3] = torch.nan
    lost = causal_conv1d(**inputs, activation="silu", backend="triton").isnan()
    expected = torch.zeros_like(lost)
    expected[0, 2:6, 3] = True
    assert torch.equal(lost, expected)


@pytest.mark.cuda
def test_more_than_two_to_the_31_elements(device):
    length, channels = 2**16 + 1, 2**15
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free GPU memory")
    x = torch.randn(1, length, channels, device=device, dtype=torch.bfloat16)
    weight = torch.randn(channels, 4, device=device)
    y = causal_conv1d(x, weight, activation="silu", backend="triton")
    expected = causal_conv1d(x[:, -8:, -8:].double(), weight[-8:].double(), activation="silu", backend="torch")
    assert relative_error(y[:, -5:, -8:], expected[:, -5:]) < 1e-2
