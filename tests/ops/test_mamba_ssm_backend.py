"""The backends that call mamba-ssm and causal-conv1d: their layouts, dtypes and limits, checked by stand-ins.

The stand-ins have the signatures of those packages, insist on what their kernels insist on, and compute by the
definition. tests/cuda runs the packages themselves where they are installed.
"""

import importlib
import sys
import types

import pytest
import torch
from support import relative_error, scan_inputs

from wavemamba.errors import BackendUnavailable
from wavemamba.ops import causal_conv1d, selective_scan
from wavemamba.ops.causal_conv1d import BACKENDS as CONV_BACKENDS
from wavemamba.ops.selective_scan import BACKENDS as SCAN_BACKENDS


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    assert all(t.dtype == u.dtype for t in (delta, B, C, z) if t is not None)
    assert all(t.dtype == torch.float32 for t in (A, D, delta_bias) if t is not None)
    assert B.dim() == C.dim() == 4
    y, last = selective_scan(
        u.transpose(1, 2), delta.transpose(1, 2), A, B.movedim(-1, 1), C.movedim(-1, 1), D,
        None if z is None else z.transpose(1, 2), delta_bias=delta_bias, delta_softplus=delta_softplus,
        return_last_state=True, backend="reference",
    )  # fmt: skip
    return (y.transpose(1, 2), last) if return_last_state else y.transpose(1, 2)


def causal_conv1d_fn(
    x,
    weight,
    bias=None,
    seq_idx=None,
    initial_states=None,
    return_final_states=False,
    final_states_out=None,
    activation=None,
):
    assert 2 <= weight.shape[1] <= 4
    assert bias is None or bias.dtype == weight.dtype
    if x.stride(1) == 1 and x.stride(2) > 1:
        assert x.shape[1] % 8 == x.stride(0) % 8 == x.stride(2) % 8 == 0
    else:
        assert x.stride(2) == 1
        assert initial_states is None
    if initial_states is not None:
        assert initial_states.dtype == x.dtype
        assert initial_states.stride(1) == 1
        initial_states = initial_states.transpose(1, 2)
    y = causal_conv1d(
        x.transpose(1, 2), weight, bias, activation=activation, initial_state=initial_states, backend="reference"
    )
    return y.transpose(1, 2)


@pytest.fixture
def scan(monkeypatch):
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    name = "wavemamba.ops.selective_scan.mamba_ssm"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name).run
    del sys.modules[name]


@pytest.fixture
def conv(monkeypatch):
    package = types.ModuleType("causal_conv1d")
    package.causal_conv1d_fn = causal_conv1d_fn
    monkeypatch.setitem(sys.modules, "causal_conv1d", package)
    name = "wavemamba.ops.causal_conv1d.mamba_ssm"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name).run
    del sys.modules[name]


def float_inputs(**sizes):
    return {k: v.float() for k, v in scan_inputs(**sizes).items()}


@pytest.mark.parametrize("with_order", [False, True])
@pytest.mark.parametrize("absent", [(), ("D", "z", "delta_bias")])
def test_scan_and_its_gradients(scan, absent, with_order):
    inputs = {k: v for k, v in float_inputs(groups=2).items() if k not in (*absent, "initial_state")}
    order = torch.randperm(13) if with_order else None
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    own = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    y, last = scan(*(own.get(k) for k in names), True, None, order)
    exact = {k: v.double().requires_grad_() for k, v in inputs.items()}
    expected, expected_last = selective_scan(
        **exact, delta_softplus=True, order=order, return_last_state=True, backend="reference"
    )
    assert relative_error(y, expected) < 1e-6
    assert relative_error(last, expected_last) < 1e-6
    flowing = torch.randn(y.shape)
    gradients = torch.autograd.grad(y, list(own.values()), flowing, retain_graph=True)
    for gradient, truth in zip(
        gradients, torch.autograd.grad(expected, list(exact.values()), flowing.double()), strict=True
    ):
        assert relative_error(gradient, truth) < 1e-6
    with pytest.raises(BackendUnavailable, match="gradient through the last state"):
        last.sum().backward()


def test_scan_brings_its_inputs_to_the_package_dtypes(scan):
    inputs = float_inputs()
    half = {k: inputs[k].bfloat16() for k in ("u", "D", "A")}
    y, last = scan(
        half["u"], inputs["delta"], half["A"], inputs["B"], inputs["C"], half["D"], None, None, True, None, None
    )
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32


def test_scan_says_what_the_package_cannot(scan):
    inputs = float_inputs()
    basic = [inputs[k] for k in ("u", "delta", "A", "B", "C")]
    with pytest.raises(BackendUnavailable, match="initial state"):
        scan(*basic, None, None, None, True, inputs["initial_state"], None)
    many = [torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 300), *torch.zeros(2, 1, 1, 1, 300)]
    with pytest.raises(BackendUnavailable, match="256 states, got 300"):
        scan(*many, None, None, None, True, None, None)


@pytest.mark.parametrize("with_order", [False, True])
@pytest.mark.parametrize(("channels", "with_state"), [(16, False), (16, True), (5, False)])
def test_convolution_and_its_gradients(conv, channels, with_state, with_order):
    inputs = {"x": torch.randn(2, 7, channels), "weight": torch.randn(channels, 4), "bias": torch.randn(channels)}
    if with_state:
        inputs["initial_state"] = torch.randn(2, 3, channels)
    order = torch.randperm(7) if with_order else None
    own = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    y = conv(own["x"], own["weight"], own["bias"], True, own.get("initial_state"), order)
    exact = {k: v.double().requires_grad_() for k, v in inputs.items()}
    expected = causal_conv1d(**exact, activation="silu", order=order, backend="reference")
    assert relative_error(y, expected) < 1e-6
    flowing = torch.randn(y.shape)
    for gradient, truth in zip(
        torch.autograd.grad(y, list(own.values()), flowing),
        torch.autograd.grad(expected, list(exact.values()), flowing.double()),
        strict=True,
    ):
        assert relative_error(gradient, truth) < 1e-6


def test_convolution_of_half_a_projection(conv):
    """A view of another tensor: taken as it is where its strides allow, copied where they do not."""
    for wide in (32, 37):
        x = torch.randn(2, 7, wide)[..., :16]
        weight = torch.randn(16, 2)
        expected = causal_conv1d(x, weight, backend="reference")
        torch.testing.assert_close(conv(x, weight, None, False, None, None), expected)


def test_convolution_says_what_the_package_cannot(conv):
    x = torch.zeros(1, 4, 5)
    with pytest.raises(BackendUnavailable, match="widths 2, 3, 4, got 5"):
        conv(x, torch.zeros(5, 5), None, False, None, None)
    with pytest.raises(BackendUnavailable, match="multiples of 8"):
        conv(x, torch.zeros(5, 4), None, False, torch.zeros(1, 3, 5), None)


@pytest.mark.parametrize("table", [SCAN_BACKENDS, CONV_BACKENDS])
def test_the_package_is_no_choice_on_a_cpu(table):
    (backend,) = (backend for backend in table if backend.name == "mamba_ssm")
    x = torch.zeros(1, 4, 8)
    call = (
        (lambda: selective_scan(x, x, -torch.ones(8, 2), x[..., :2], x[..., :2], backend="mamba_ssm"))
        if table is SCAN_BACKENDS
        else (lambda: causal_conv1d(x, torch.ones(8, 2), backend="mamba_ssm"))
    )
    with pytest.raises(BackendUnavailable, match="runs on a GPU"):
        call()
    assert backend.load is not None
