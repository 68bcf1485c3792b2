"""The backends that call mamba-ssm and causal-conv1d: their layouts, dtypes and limits, checked by stand-ins.

The stand-ins have the signatures of those packages, insist on what their kernels insist on, and compute by the
definition. tests/cuda runs the packages themselves where they are installed.
"""

import sys
import types

import pytest
import torch
from support import relative_error, scan_inputs

from wavemamba.errors import BackendUnavailable
from wavemamba.ops import causal_conv1d, selective_scan
from wavemamba.ops.causal_conv1d import mamba_ssm as conv_backend
from wavemamba.ops.causal_conv1d.op import ConvInputs
from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Case
from wavemamba.ops.selective_scan import mamba_ssm as scan_backend
from wavemamba.ops.selective_scan.op import ScanInputs


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
    if seq_idx is not None:
        assert seq_idx.dtype == torch.int32
        assert seq_idx.is_contiguous()
        assert initial_states is None
        assert x.stride(1) == 1
    y = causal_conv1d(
        x.transpose(1, 2), weight, bias, activation=activation, initial_state=initial_states, seq_idx=seq_idx,
        backend="reference",
    )  # fmt: skip
    return y.transpose(1, 2)


@pytest.fixture
def scan(monkeypatch):
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    return lambda *values: scan_backend.run(ScanInputs(*values))


@pytest.fixture
def conv(monkeypatch):
    package = types.ModuleType("causal_conv1d")
    package.causal_conv1d_fn = causal_conv1d_fn
    monkeypatch.setitem(sys.modules, "causal_conv1d", package)
    return lambda *values: conv_backend.run(ConvInputs(*values))


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


@pytest.mark.parametrize("with_order", [False, True])
def test_convolution_of_packed_sequences(conv, with_order):
    """The package compares numbers alone, so that a sequence that comes back, as with an order, needs another one."""
    x, weight, bias = torch.randn(2, 9, 16), torch.randn(16, 4), torch.randn(16)
    order = torch.randperm(9) if with_order else None
    seq_idx = torch.tensor([[0, 0, 1, 0, 0, 0, 2, 2, 2], [3, 3, 3, 4, 3, 4, 3, 4, 4]])
    expected = causal_conv1d(x, weight, bias, activation="silu", order=order, seq_idx=seq_idx, backend="reference")
    torch.testing.assert_close(conv(x, weight, bias, True, None, order, seq_idx), expected)


def test_convolution_of_half_a_projection(conv):
    """A view of another tensor: taken as it is where its strides allow, copied where they do not."""
    for wide in (32, 37):
        x = torch.randn(2, 7, wide)[..., :16]
        weight = torch.randn(16, 2)
        expected = causal_conv1d(x, weight, backend="reference")
        torch.testing.assert_close(conv(x, weight, None, False, None, None), expected)


SCAN = {"refuses": scan_backend.refuses, "package": "mamba_ssm"}
CONV = {"refuses": conv_backend.refuses, "package": "causal_conv1d"}


@pytest.mark.parametrize(
    ("backend", "case", "reason"),
    [
        (SCAN, {}, None),
        (SCAN, {"device": "cpu"}, "runs on a GPU"),
        (SCAN, {"dtype": torch.float64}, "float64"),
        (SCAN, {"features": ("initial_state",)}, "no initial state"),
        (SCAN, {"sizes": {"states": 257}}, "at most 256 states"),
        (CONV, {}, None),
        (CONV, {"device": "cpu"}, "runs on a GPU"),
        (CONV, {"sizes": {"width": 5, "channels": 8}}, "widths 2, 3 and 4"),
        (CONV, {"features": ("initial_state",), "sizes": {"width": 4, "channels": 5}}, "multiples of 8"),
    ],
)
def test_what_the_packages_cannot_do_is_said_before_they_run(monkeypatch, backend, case, reason):
    everything = dict.fromkeys(availability.INSTALLED, True)
    monkeypatch.setattr(availability, "INSTALLED", everything)
    told = backend["refuses"](Case(**{"op": "op", "device": "cuda", "dtype": torch.float32, **case}))
    assert told is None if reason is None else reason in told


@pytest.mark.parametrize("backend", [SCAN, CONV])
def test_a_package_without_its_compiled_part_is_no_choice(monkeypatch, backend):
    case = Case("op", "cuda", torch.float32)
    package = backend["package"]
    monkeypatch.setattr(availability, "INSTALLED", dict.fromkeys(availability.INSTALLED, False))
    assert f"{package} is not installed" in backend["refuses"](case)
    monkeypatch.setitem(availability.INSTALLED, package, True)
    assert "without its compiled part" in backend["refuses"](case)


def test_a_refused_call_names_the_reason():
    x = torch.zeros(1, 4, 8)
    with pytest.raises(BackendUnavailable, match="runs on a GPU"):
        selective_scan(x, x, -torch.ones(8, 2), x[..., :2], x[..., :2], backend="mamba_ssm")
    with pytest.raises(BackendUnavailable, match="runs on a GPU"):
        causal_conv1d(x, torch.ones(8, 2), backend="mamba_ssm")
