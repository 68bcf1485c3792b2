"""What the ops are given, right or wrong: devices, dtypes, layouts, lazy views, orders, empty sides, default dtypes."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from op_calls import Call
from support import relative_error
from torch import nn

from wavemamba import ShapeError
from wavemamba.ops import causal_conv1d, haar_analysis, haar_synthesis, selective_scan, to_haar_map
from wavemamba.scans import scan_order


def each_input(call, change, message):
    """The change of any one input is refused by that input's name."""
    for name, value in call.inputs.items():
        with pytest.raises(ShapeError, match=message) as error:
            call(**{name: change(value)})
        assert name in str(error.value)


def test_another_device_is_named(wide_call):
    call = wide_call
    first, *others = call.inputs
    with pytest.raises(ShapeError, match=f"{others[0]}: .*meta.*cpu"):
        call(**{first: call.inputs[first].to("meta")})
    for name in others:
        with pytest.raises(ShapeError, match=rf"^{name}: .*cpu.*meta"):
            call(**{name: call.inputs[name].to("meta")})
    with pytest.raises(ShapeError, match=r"seq_idx: .*cpu.*meta"):
        call(seq_idx=torch.empty(2, 5, dtype=torch.int64, device="meta"))


def test_an_order_on_another_device_is_named(sequence_call):
    with pytest.raises(ShapeError, match=r"order: .*cpu.*meta"):
        sequence_call(order=torch.empty(5, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2])
def test_other_dtypes_are_named(call, dtype):
    each_input(call, lambda value: value.to(dtype), "expected float64, float32, bfloat16 or float16")


@pytest.mark.filterwarnings("ignore:.*Sparse")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_other_layouts_are_named(call):
    each_input(call, lambda value: value.to_sparse(), "expected a dense tensor")
    each_input(call, lambda value: torch.nested.nested_tensor(list(value)), "expected a dense tensor")


def test_what_is_no_tensor_is_named(call):
    each_input(call, lambda value: value.numpy(), "expected a tensor, got ndarray")


def negated(value):
    return torch.complex(torch.zeros_like(value), -value).conj().imag


class Subclass(torch.Tensor):
    """A subclass without behaviour, as libraries of images have them."""


@pytest.mark.parametrize(
    "disguise",
    [
        negated,
        lambda value: value.as_subclass(Subclass),
        nn.Parameter,
        lambda value: torch._neg_view(-value),
        lambda value: torch.stack([value, value], -1)[..., 0],
    ],
    ids=["lazy negative", "subclass", "parameter", "negative view", "strided"],
)
def test_disguised_tensors_give_the_same_numbers(call, disguise):
    expected = call()
    for name, value in call.inputs.items():
        assert torch.equal(disguise(value), value)
        for result, truth in zip(call(**{name: disguise(value)}), expected, strict=True):
            assert relative_error(result, truth) < 1e-6, name


def test_gradients_of_disguised_outputs(call):
    """The gradient that arrives may be a lazy negative too."""
    inputs = {name: value.requires_grad_() for name, value in call.inputs.items()}
    outputs = call(inputs)
    flowing = [torch.ones_like(y) for y in outputs]
    plain = torch.autograd.grad(outputs, list(inputs.values()), flowing, retain_graph=True)
    lazy = torch.autograd.grad(outputs, list(inputs.values()), [negated(y) for y in flowing])
    assert all(torch.equal(a, b) for a, b in zip(plain, lazy, strict=True))


STRIDES = {
    "a part of what cat joined": lambda g: torch.cat([g, g, g], 1)[:, g.shape[1] : 2 * g.shape[1]],
    "every second number": lambda g: torch.stack([g, g], -1)[..., 0],
    "transposed": lambda g: g.transpose(1, 2).contiguous().transpose(1, 2),
    "one sample for all": lambda g: g[:1].expand_as(g),
    "one number for all": lambda g: g.new_ones(()).expand_as(g),
}


@pytest.mark.parametrize("strides", STRIDES)
def test_gradients_that_arrive_with_any_strides(call, strides):
    """Autograd promises nothing of them, and `gradcheck` tries contiguous ones alone."""
    inputs = {name: value.requires_grad_() for name, value in call.inputs.items()}
    outputs = call(inputs)
    arriving = [STRIDES[strides](torch.randn_like(y)) for y in outputs]
    found, expected = (
        torch.autograd.grad(outputs, list(inputs.values()), flowing, retain_graph=True)
        for flowing in (arriving, [g.contiguous() for g in arriving])
    )
    assert not any(g.is_contiguous() for g in arriving)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "order",
    [
        [0, 0, 1, 1, 2],
        [0, 1, 2, 3, 5],
        [-1, 0, 1, 2, 3],
        [3, 4, 5, 6, 7],
        [0.0, 1, 2, 3, 4],
        [True, False, True, False, True],
        [0, 1, 2, 3],
        [[0, 1, 2, 3, 4]],
    ],
    ids=str,
)
def test_orders_that_are_no_permutation_are_refused(sequence_call, order):
    with pytest.raises(ShapeError, match="order: expected"):
        sequence_call(order=torch.tensor(order))


def test_an_order_written_to_after_its_check_is_checked_again(sequence_call):
    order = scan_order("snake").permutation(1, 5).clone()
    sequence_call(order=order)
    order[0] = 77
    with pytest.raises(ShapeError, match="order: expected"):
        sequence_call(order=order)


def test_int32_orders_and_strided_ones(sequence_call):
    order = torch.tensor([3, 1, 4, 0, 2])
    expected = sequence_call(order=order)
    for other in (order.int(), torch.stack([order, order], 1)[:, 0]):
        assert all(torch.equal(a, b) for a, b in zip(sequence_call(order=other), expected, strict=True))


@pytest.mark.parametrize("op", ["selective_scan", "causal_conv1d"])
def test_a_compiled_graph_checks_the_order_where_a_kernel_writes(op):
    """Values are not known while a graph is traced; the kernels look at them when it runs."""
    call = Call(op, "numba")
    inputs = call.inputs
    torch._dynamo.reset()
    compiled = torch.compile(lambda order: call(inputs, order=order), backend="eager", fullgraph=True)
    compiled(torch.arange(5))
    with pytest.raises(ShapeError, match="order"):
        compiled(torch.tensor([0, 0, 1, 1, 2]))


SETTINGS = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),
    "default device": lambda: default_device("meta"),
}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("setting", SETTINGS)
def test_defaults_of_pytorch_change_nothing(call, setting):
    order, seq_idx = torch.tensor([3, 1, 4, 0, 2]), torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
    options = {} if "haar" in call.op else {"seq_idx": seq_idx}
    options |= {"order": order} if call.op in ("selective_scan", "causal_conv1d") else {}
    inputs = call.inputs
    expected = call.with_gradients(inputs, **options)
    with SETTINGS[setting]():
        results = call.with_gradients(inputs, **options)
    for name, truth in expected.items():
        assert results[name].dtype == truth.dtype
        assert torch.equal(results[name], truth), name


@pytest.mark.parametrize("setting", [*SETTINGS, None])
def test_loss_on_the_last_state_alone(scan_call, setting):
    call = scan_call
    inputs = {name: value.requires_grad_() for name, value in call.inputs.items()}
    names = ("u", "delta", "A", "B", "delta_bias", "initial_state")
    with SETTINGS[setting]() if setting else contextlib.nullcontext():
        gradients = torch.autograd.grad(call(inputs)[1].square().sum(), [inputs[name] for name in names])
    exact = {name: value.detach().double().requires_grad_() for name, value in inputs.items()}
    truths = torch.autograd.grad(call.on("reference")(exact)[1].square().sum(), [exact[name] for name in names])
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(gradients, truths, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch_gives_an_empty_result(call, dtype):
    batched = {"u", "delta", "B", "C", "z", "initial_state", "x", "dt", "q", "k", "v", "log_decay"}
    inputs = {k: (v[:0] if k in batched else v).to(dtype) for k, v in call.inputs.items()}
    results = call.with_gradients(inputs)
    assert all(results[i].shape == y[:0].shape for i, y in enumerate(call()))
    for name, value in inputs.items():
        assert results[name].shape == value.shape
        assert results[name].eq(0).all()


def wrong_sides():
    x, A = torch.zeros(1, 4, 6), -torch.ones(6, 2)
    BC, empty = torch.zeros(1, 4, 2), torch.zeros(1, 4, 0, 2)
    return {
        "no groups": (lambda: selective_scan(x, x, A, empty, empty), "groups"),
        "no states": (lambda: selective_scan(x, x, A[:, :0], BC[..., :0], BC[..., :0]), "N at least 1"),
        "no steps": (lambda: selective_scan(x[:, :0], x[:, :0], A, BC[:, :0], BC[:, :0]), "L and E at least 1"),
        "no channels": (lambda: causal_conv1d(x[..., :0], torch.zeros(0, 4)), "L and E at least 1"),
        "no taps": (lambda: causal_conv1d(x, torch.zeros(6, 0)), "width at least 1"),
        "no steps to convolve": (lambda: causal_conv1d(x[:, :0], torch.zeros(6, 4)), "L and E at least 1"),
    }


@pytest.mark.parametrize("case", wrong_sides())
def test_empty_sides_are_named(case):
    function, message = wrong_sides()[case]
    with pytest.raises(ShapeError, match=message):
        function()


def test_every_input_of_a_single_step_has_a_gradient(call):
    """Otherwise distributed training meets an unused parameter."""
    along = {"u", "delta", "B", "C", "z", "x", "dt", "q", "k", "v", "log_decay"}
    inputs = call.inputs
    if "haar" not in call.op:
        inputs = {k: v[:, :1] if k in along else v for k, v in inputs.items()}
        del inputs["initial_state"]
    results = call.with_gradients(inputs)
    assert all(results[name] is not None for name in inputs)


def test_finite_results_near_the_largest_float(map_call):
    call = map_call
    for value in (3e38, -3e38):
        x = torch.full((1, 8, 8, 3), value)
        if call.op == "to_haar_map":
            (y,) = call(x=x, layout="mosaic", levels=3)
            assert y[0, 0, 0] == pytest.approx(value, rel=1e-6)
        else:
            x = torch.zeros_like(x)
            x[0, 0, 0] = value
            (y,) = call(x=x, layout="mosaic", levels=3)
            assert y[0, 0, 0] == pytest.approx(value, rel=1e-6)
        assert y.isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_orthonormal_bands_near_the_largest_float(backend):
    x = torch.tensor([[3e38, 3e38], [-3e38, -3e38]])[None, :, :, None]
    bands = haar_analysis(x / 2, 1, backend=backend)
    assert bands.flatten().tolist() == pytest.approx([0, 3e38, 0, 0], rel=1e-6)
    assert torch.equal(haar_synthesis(bands, 1, backend=backend), x / 2)


@pytest.mark.parametrize("state", [1, 2, 3])
def test_infinite_steps_have_the_gradients_of_the_definition(scan_call, state):
    """An infinite step wipes the state out; what a kernel pads the states with must not answer with NaN."""
    inputs = scan_call.inputs
    inputs |= {name: inputs[name][..., :state] for name in ("A", "B", "C", "initial_state")}
    inputs["delta"][0, 2, 1] = torch.inf
    inputs["u"][0, 2, 1] = 0.5
    results, truths = scan_call.with_gradients(inputs), scan_call.on("reference").with_gradients(inputs)
    for name, truth in truths.items():
        assert torch.equal(results[name].isnan(), truth.isnan()), name


def test_inputs_changed_before_the_backward_pass_are_noticed():
    """An in-place change of an input after the call is noticed by autograd, not silently used."""
    x = torch.randn(1, 4, 6)
    weight = torch.randn(6, 3, requires_grad=True)
    y = causal_conv1d(x, weight, backend="numba")
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_no_warnings(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call.with_gradients()


def test_the_public_checks_of_the_maps():
    with pytest.raises(ShapeError, match="bands"):
        haar_synthesis(torch.zeros(1, 2, 2, 4, 3, dtype=torch.complex64), 1)
    with pytest.raises(ShapeError, match="x"):
        to_haar_map(torch.zeros(1, 2, 2, 3, dtype=torch.int32), 1, "mosaic")
