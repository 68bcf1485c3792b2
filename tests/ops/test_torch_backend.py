"""The vectorised backend against the definition, in float64, with gradcheck."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import relative_error, scan_inputs

from wavemamba.ops import causal_conv1d, selective_scan
from wavemamba.ops.recurrence import linear_recurrence

OPTIONAL = ("D", "z", "delta_bias", "initial_state")


def both(inputs, **options):
    return [
        selective_scan(**inputs, **options, return_last_state=True, backend=backend)
        for backend in ("torch", "reference")
    ]


@pytest.mark.parametrize("length", [1, 2, 63, 129])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("optional", [True, False])
def test_scan_agrees_with_the_definition(length, groups, optional):
    inputs = scan_inputs(length=length, groups=groups)
    if not optional:
        inputs = {k: v for k, v in inputs.items() if k not in OPTIONAL}
        inputs["delta"] = inputs["delta"].abs()
    order = torch.randperm(length) if optional else None
    (y, last), (y_ref, last_ref) = both(inputs, delta_softplus=optional, order=order)
    assert relative_error(y, y_ref) < 1e-12
    assert relative_error(last, last_ref) < 1e-12


def test_order_is_gather_scan_scatter():
    inputs = scan_inputs(length=9)
    order = torch.randperm(9)
    rows = {k: (v[:, order] if k in ("u", "delta", "B", "C", "z") else v) for k, v in inputs.items()}
    expected = torch.empty_like(inputs["u"])
    expected[:, order] = selective_scan(**rows, backend="reference")
    for backend in ("torch", "reference"):
        assert relative_error(selective_scan(**inputs, order=order, backend=backend), expected) < 1e-12


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_scan_gradcheck(backend):
    inputs = {k: v.requires_grad_() for k, v in scan_inputs(1, 5, 2, 3).items()}
    names, order = list(inputs), torch.randperm(5)

    def function(*values):
        named = dict(zip(names, values, strict=True))
        return selective_scan(**named, delta_softplus=True, return_last_state=True, order=order, backend=backend)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


def test_scan_second_derivative():
    inputs = {k: v.requires_grad_() for k, v in scan_inputs(1, 3, 2, 2).items()}
    names = list(inputs)

    def function(*values):
        return selective_scan(**dict(zip(names, values, strict=True)), delta_softplus=True, backend="torch")

    assert torch.autograd.gradgradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [1, 3, 20])
def test_convolution_agrees_and_passes_gradcheck(width, length):
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, width, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, width - 1, 3, dtype=torch.float64, requires_grad=True)
    order = torch.randperm(length)

    def function(x, weight, bias, state, backend="torch"):
        return causal_conv1d(x, weight, bias, activation="silu", initial_state=state, order=order, backend=backend)

    assert relative_error(function(x, weight, bias, state), function(x, weight, bias, state, "reference")) < 1e-12
    if length == 3:
        assert torch.autograd.gradcheck(function, (x, weight, bias, state))


def test_convolution_is_torch_conv1d():
    x, weight, bias = torch.randn(2, 11, 5), torch.randn(5, 4), torch.randn(5)
    expected = torch.nn.functional.conv1d(x.mT, weight[:, None], bias, padding=3, groups=5)[..., :11].mT
    assert relative_error(causal_conv1d(x, weight, bias, backend="torch"), expected) < 1e-6


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 70), decay=st.floats(0, 1))
def test_recurrence_has_the_closed_form(length, decay):
    value = torch.ones(1, length, 1, dtype=torch.float64)
    h = linear_recurrence(decay * value, value).flatten()
    expected = torch.tensor([sum(decay**k for k in range(step + 1)) for step in range(length)], dtype=torch.float64)
    assert torch.allclose(h, expected, rtol=1e-9)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_large_steps_do_not_overflow(backend):
    inputs = {k: v.float() for k, v in scan_inputs(length=50).items()}
    inputs["delta"] = inputs["delta"] * 1e4
    inputs["A"] = inputs["A"] * 1e4
    inputs = {k: v.requires_grad_() for k, v in inputs.items()}
    y = selective_scan(**inputs, delta_softplus=True, backend=backend)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(v.grad).all() for v in inputs.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_keep_a_float32_state(dtype):
    inputs = {k: v.to(dtype) for k, v in scan_inputs(length=40).items()}
    y, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend="torch")
    y_ref = selective_scan(**{k: v.double() for k, v in inputs.items()}, delta_softplus=True, backend="reference")
    assert y.dtype == dtype
    assert last.dtype == torch.float32
    assert relative_error(y, y_ref) < (6e-3 if dtype == torch.bfloat16 else 8e-4)
