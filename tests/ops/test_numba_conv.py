"""The CPU kernel of the causal convolution against the definition in float64: output and every gradient."""

import pytest
import torch
from support import relative_error

from wavemamba.ops import causal_conv1d

TOLERANCE = {torch.float32: 5e-7, torch.bfloat16: 3e-3, torch.float16: 4e-4}


def conv_inputs(dtype=torch.float32, batch=2, length=21, channels=20, width=4):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "x": (batch, length, channels),
        "weight": (channels, width),
        "bias": (channels,),
        "initial_state": (batch, width - 1, channels),
    }
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def output_and_gradients(inputs, backend, **options):
    inputs = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    y = causal_conv1d(**inputs, **options, backend=backend)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(y.dtype)
    gradients = torch.autograd.grad(y, list(inputs.values()), dy, allow_unused=True)
    return {"y": y} | {f"d{name}": gradient for name, gradient in zip(inputs, gradients, strict=True)}


def assert_agrees(inputs, tolerance=TOLERANCE[torch.float32], **options):
    results = output_and_gradients(inputs, "numba", **options)
    expected = output_and_gradients({k: v.double() for k, v in inputs.items()}, "reference", **options)
    # the state of a window of one step is empty, and the reference does not look at it
    errors = {k: relative_error(results[k], expected[k]) for k in results if results[k].numel()}
    assert max(errors.values()) < tolerance, errors
    assert all(results[f"d{name}"].dtype == value.dtype for name, value in inputs.items())
    return results


@pytest.mark.parametrize("length", [1, 2, 63, 129])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_every_length_and_width(length, width):
    inputs = conv_inputs(length=length, width=width)
    assert_agrees(inputs, activation="silu", order=torch.randperm(length))


@pytest.mark.parametrize("channels", [1, 16, 130, 300])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("absent", [(), ("bias",), ("initial_state",), ("bias", "initial_state")], ids="+".join)
def test_optional_parts(channels, activation, absent):
    inputs = {k: v for k, v in conv_inputs(channels=channels).items() if k not in absent}
    assert_agrees(inputs, activation=activation)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(dtype):
    results = assert_agrees(conv_inputs(dtype), TOLERANCE[dtype], activation="silu")
    assert results["y"].dtype == dtype


def test_strided_inputs():
    plain = conv_inputs()
    expected = output_and_gradients(plain, "numba", activation="silu")
    strided = dict(plain)
    strided["x"] = torch.cat([plain["x"], plain["x"]], dim=2)[..., :20]
    strided["weight"] = plain["weight"].T.contiguous().T
    strided["initial_state"] = plain["initial_state"].mT.contiguous().mT
    assert not any(strided[k].is_contiguous() for k in ("x", "weight", "initial_state"))
    results = output_and_gradients(strided, "numba", activation="silu")
    assert all(torch.equal(results[name], expected[name]) for name in expected)


def test_results_do_not_depend_on_the_number_of_threads():
    inputs = conv_inputs(batch=3, channels=300)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(output_and_gradients(inputs, "numba", activation="silu"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


def test_memory_left_uninitialised_is_not_read():
    inputs = conv_inputs(length=2, width=4)
    expected = output_and_gradients(inputs, "numba", activation="silu")
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        results = output_and_gradients(inputs, "numba", activation="silu")
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled
    assert all(torch.equal(results[name], expected[name]) for name in expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["x", "weight", "bias", "initial_state"])
def test_nan_and_infinity_propagate(name, value):
    inputs = conv_inputs()
    inputs[name].view(-1)[0] = value
    y = causal_conv1d(**inputs, activation="silu", backend="numba")
    expected = causal_conv1d(**{k: v.double() for k, v in inputs.items()}, activation="silu", backend="reference")
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isfinite(), expected.isfinite())
