"""The CPU kernel of the selective scan against the definition in float64: outputs and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import relative_error, scan_inputs

from wavemamba.ops import selective_scan

# Relative L2, inputs rounded to the dtype for both sides: what remains is the rounding of the results to it.
TOLERANCE = {torch.float32: 5e-7, torch.bfloat16: 3e-3, torch.float16: 4e-4}
OPTIONAL = ("D", "z", "delta_bias", "initial_state")


def scan_and_gradients(inputs, backend, **options):
    """Outputs and gradients by name, with fixed random gradients of both outputs flowing back."""
    inputs = {k: v.detach().clone(memory_format=torch.preserve_format).requires_grad_() for k, v in inputs.items()}
    return differentiate(inputs, backend, **options)


def differentiate(inputs, backend, **options):
    y, last = selective_scan(**inputs, **options, return_last_state=True, backend=backend)
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, generator=generator).to(torch.bfloat16)
    dlast = torch.randn(last.shape, generator=generator).to(torch.bfloat16)
    names = list(inputs)
    gradients = torch.autograd.grad((y, last), [inputs[k] for k in names], (dy.to(y.dtype), dlast.to(last.dtype)))
    return {"y": y, "last": last} | {f"d{k}": g for k, g in zip(names, gradients, strict=True)}


def assert_agrees(inputs, tolerance=TOLERANCE[torch.float32], **options):
    results = scan_and_gradients(inputs, "numba", **options)
    expected = scan_and_gradients({k: v.double() for k, v in inputs.items()}, "reference", **options)
    errors = {name: relative_error(results[name], expected[name]) for name in results}
    assert max(errors.values()) < tolerance, errors
    for name, value in inputs.items():
        assert results[f"d{name}"].dtype == value.dtype
        assert results[f"d{name}"].shape == value.shape
    return results


def make_steps_positive(inputs):
    """Without softplus a negative step lets the states grow, and errors with them."""
    for name in {"delta", "delta_bias"} & set(inputs):
        inputs[name] = inputs[name].abs()


def inputs_in(dtype, **sizes):
    return {k: v.to(dtype) for k, v in scan_inputs(**sizes).items()}


@pytest.mark.parametrize("length", [1, 2, 63, 129])
@pytest.mark.parametrize("with_order", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_every_length_order_and_group(length, with_order, groups):
    order = torch.randperm(length) if with_order else None
    inputs = inputs_in(torch.float32, length=length, width=40, state=5, groups=groups)
    assert_agrees(inputs, delta_softplus=True, order=order)


@pytest.mark.parametrize(("width", "state"), [(1, 1), (15, 2), (16, 16), (17, 3), (130, 16), (300, 1)])
def test_every_width_and_state_size(width, state):
    tolerance = 5e-6 if width == 1 else TOLERANCE[torch.float32]  # the gradient of one bias is a sum that may cancel
    assert_agrees(inputs_in(torch.float32, length=37, width=width, state=state), tolerance, delta_softplus=True)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", [*((name,) for name in OPTIONAL), OPTIONAL], ids="+".join)
def test_optional_parts_absent(absent, softplus):
    inputs = {k: v for k, v in inputs_in(torch.float32, length=35).items() if k not in absent}
    if not softplus:
        make_steps_positive(inputs)
    assert_agrees(inputs, delta_softplus=softplus)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(dtype):
    inputs = inputs_in(dtype, length=40, width=20)
    results = assert_agrees(inputs, TOLERANCE[dtype], delta_softplus=True, order=torch.randperm(40))
    assert results["y"].dtype == dtype
    assert results["last"].dtype == torch.float32


def test_mixed_dtypes():
    inputs = inputs_in(torch.float32, length=20)
    inputs |= {k: inputs[k].bfloat16() for k in ("u", "delta", "z", "B", "C")}
    results = assert_agrees(inputs, TOLERANCE[torch.bfloat16], delta_softplus=True)
    assert results["y"].dtype == torch.bfloat16
    assert results["dA"].dtype == torch.float32


def test_strided_inputs():
    plain = inputs_in(torch.float32, batch=3, length=21, width=24)
    expected = scan_and_gradients(plain, "numba", delta_softplus=True)
    halves = torch.cat([plain["u"], plain["z"]], dim=2)
    strided = dict(plain)
    strided["u"], strided["z"] = halves.chunk(2, dim=2)
    strided["delta"] = plain["delta"].transpose(0, 1).contiguous().transpose(0, 1)  # rows of a batch lie apart
    strided["B"] = plain["B"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    strided["A"] = plain["A"].T.contiguous().T
    strided["D"] = plain["D"].repeat_interleave(2)[::2]
    strided["initial_state"] = plain["initial_state"].transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(strided[k].is_contiguous() for k in ("u", "z", "delta", "B", "A", "D", "initial_state"))
    results = differentiate({k: v.requires_grad_() for k, v in strided.items()}, "numba", delta_softplus=True)
    assert all(torch.equal(results[name], expected[name]) for name in expected)


def test_channels_that_are_not_neighbours():
    plain = inputs_in(torch.float32, length=7)
    moved = {k: (v.mT.contiguous().mT if k in ("u", "delta", "z") else v) for k, v in plain.items()}
    expected = scan_and_gradients(plain, "numba", delta_softplus=True)
    results = scan_and_gradients(moved, "numba", delta_softplus=True)
    assert all(torch.equal(results[name], expected[name]) for name in expected)


def test_expanded_gradient():
    """`y.sum().backward()` sends a gradient whose strides are all zero."""
    inputs = {k: v.requires_grad_() for k, v in inputs_in(torch.float32, length=9).items()}
    selective_scan(**inputs, delta_softplus=True, backend="numba").sum().backward()
    reference = {k: v.double().requires_grad_() for k, v in scan_inputs(length=9).items()}
    selective_scan(**reference, delta_softplus=True, backend="reference").sum().backward()
    assert max(relative_error(inputs[k].grad, reference[k].grad) for k in inputs) < 1e-6


def test_only_the_last_state_is_differentiated():
    inputs = {k: v.requires_grad_() for k, v in inputs_in(torch.float32, length=9).items() if k not in ("D", "z")}
    _, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend="numba")
    last.square().sum().backward()
    reference = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}
    _, last = selective_scan(**reference, delta_softplus=True, return_last_state=True, backend="reference")
    last.square().sum().backward()
    assert inputs["C"].grad.eq(0).all()
    assert max(relative_error(inputs[k].grad, reference[k].grad) for k in inputs if k != "C") < 1e-6


@pytest.mark.parametrize("length", [1, 33])
def test_memory_left_uninitialised_is_not_read(length):
    """PyTorch fills every new tensor with NaN here; scratch memory that is read before it is written shows up too."""
    inputs = inputs_in(torch.float32, length=length, width=20)
    expected = scan_and_gradients(inputs, "numba", delta_softplus=True)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        results = scan_and_gradients(inputs, "numba", delta_softplus=True)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled
    assert all(torch.equal(results[name], expected[name]) for name in expected)


def test_results_do_not_depend_on_the_number_of_threads():
    inputs = inputs_in(torch.float32, batch=3, length=70, width=300, groups=2)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(scan_and_gradients(inputs, "numba", delta_softplus=True, order=torch.arange(70).flip(0)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"])
def test_nan_and_infinity_propagate(name, value):
    inputs = inputs_in(torch.float32, length=40, width=20)
    inputs[name].view(-1)[inputs[name].numel() // 2] = value
    y, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend="numba")
    y_ref, last_ref = selective_scan(
        **{k: v.double() for k, v in inputs.items()}, delta_softplus=True, return_last_state=True, backend="reference"
    )
    assert torch.equal(y.isfinite(), y_ref.isfinite())
    assert torch.equal(last.isfinite(), last_ref.isfinite())
    assert torch.equal(y.isnan(), y_ref.isnan())
    scan_and_gradients(inputs, "numba", delta_softplus=True)  # ends


def test_extreme_steps_stay_finite():
    inputs = inputs_in(torch.float32, length=50, width=20)
    inputs["delta"] = inputs["delta"] * 1e4
    inputs["A"] = inputs["A"] * 1e4
    results = scan_and_gradients(inputs, "numba", delta_softplus=True)
    assert all(value.isfinite().all() for value in results.values())


def test_growing_states():
    inputs = inputs_in(torch.float32, length=20)
    inputs["A"] = -inputs["A"]
    assert_agrees(inputs, 2e-6, delta_softplus=True)


def test_gradient_of_some_inputs_only():
    inputs = inputs_in(torch.float32, length=9)
    inputs["A"].requires_grad_()
    selective_scan(**inputs, delta_softplus=True, backend="numba").sum().backward()
    assert inputs["A"].grad is not None
    assert all(value.grad is None for name, value in inputs.items() if name != "A")


def test_inputs_are_not_written_to():
    inputs = inputs_in(torch.float32, length=9)
    before = {k: v.clone() for k, v in inputs.items()}
    scan_and_gradients(inputs, "numba", delta_softplus=True)
    assert all(torch.equal(inputs[k], before[k]) for k in inputs)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_case(data):
    groups = data.draw(st.integers(1, 3), "groups")
    sizes = {
        "batch": data.draw(st.integers(1, 3), "batch"),
        "length": data.draw(st.integers(1, 70), "length"),
        "width": groups * data.draw(st.integers(1, 40), "width"),
        "state": data.draw(st.integers(1, 9), "state"),
        "groups": groups,
        "seed": data.draw(st.integers(0, 1000), "seed"),
    }
    inputs = inputs_in(torch.float32, **sizes)
    for name in OPTIONAL:
        if data.draw(st.booleans(), f"without {name}"):
            del inputs[name]
    softplus = data.draw(st.booleans(), "softplus")
    if not softplus:
        make_steps_positive(inputs)
    order = torch.randperm(sizes["length"]) if data.draw(st.booleans(), "order") else None
    results = scan_and_gradients(inputs, "numba", delta_softplus=softplus, order=order)
    expected = scan_and_gradients(
        {k: v.double() for k, v in inputs.items()}, "reference", delta_softplus=softplus, order=order
    )
    for name, value in results.items():
        difference = (value.double() - expected[name]).abs().max()
        assert difference < 3e-6 * (1 + expected[name].abs().max()), name
