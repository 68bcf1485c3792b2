"""The Triton scan against the definition in float64: outputs and every gradient."""

import importlib

import pytest
import torch
from support import relative_error, scan_inputs

from wavemamba.ops import selective_scan

plan = importlib.import_module("wavemamba.ops.selective_scan.triton_plan")

# Relative L2, inputs rounded to the dtype for both sides: what remains is the rounding of the results to it. The
# interpreter truncates to bfloat16 where a GPU rounds.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def run(inputs, backend, **options):
    inputs = {k: v.detach().clone(memory_format=torch.preserve_format).requires_grad_() for k, v in inputs.items()}
    return differentiate(inputs, backend, **options)


def differentiate(inputs, backend, with_last=True, **options):
    y, last = selective_scan(**inputs, **options, return_last_state=True, backend=backend)
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, generator=generator).to(y.device, torch.bfloat16)
    dlast = torch.randn(last.shape, generator=generator).to(y.device, torch.bfloat16)
    outputs, flowing = ((y, last), (dy.to(y.dtype), dlast.to(last.dtype))) if with_last else (y, dy.to(y.dtype))
    gradients = torch.autograd.grad(outputs, list(inputs.values()), flowing)
    return {"y": y, "last": last} | {f"d{k}": g for k, g in zip(inputs, gradients, strict=True)}


def assert_agrees(inputs, device, tolerance=TOLERANCE[torch.float32], order=None, **options):
    order = None if order is None else order.to(device)
    results = run({k: v.to(device) for k, v in inputs.items()}, "triton", order=order, **options)
    expected = run({k: v.to(device).double() for k, v in inputs.items()}, "torch", order=order, **options)
    errors = {name: relative_error(results[name], expected[name]) for name in results}
    assert max(errors.values()) < tolerance, errors
    for name, value in inputs.items():
        assert results[f"d{name}"].dtype == value.dtype
        assert results[f"d{name}"].shape == value.shape
    return results


def inputs_in(dtype, **sizes):
    return {k: v.to(dtype) for k, v in scan_inputs(**sizes).items()}


@pytest.mark.parametrize("with_order", [False, True])
@pytest.mark.parametrize("length", [1, 2, 19])
def test_every_length_and_order(device, sizes, length, with_order):
    length = sizes(length, {1: 1, 2: 129, 19: 1027}[length])
    inputs = inputs_in(torch.float32, batch=1, length=length, width=sizes(7, 130), state=16)
    assert_agrees(inputs, device, delta_softplus=True, order=torch.randperm(length) if with_order else None)


@pytest.mark.parametrize(("width", "state", "groups"), [(1, 1, 1), (6, 3, 2), (33, 4, 1), (4, 40, 2), (2, 600, 1)])
def test_every_width_state_size_and_group(device, sizes, width, state, groups):
    inputs = inputs_in(torch.float32, batch=1, length=sizes(3, 70), width=width, state=state, groups=groups)
    assert_agrees(inputs, device, delta_softplus=True)


def test_even_sizes_at_full_speed(device, sizes):
    """Whole blocks of channels and no padded states: the path without masks."""
    inputs = inputs_in(torch.float32, batch=1, length=sizes(6, 256), width=sizes(32, 512), state=16)
    assert_agrees(inputs, device, delta_softplus=True, order=torch.randperm(sizes(6, 256)))


@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias", "initial_state")])
def test_optional_parts_absent(device, absent):
    inputs = {k: v for k, v in inputs_in(torch.float32, length=5).items() if k not in absent}
    assert_agrees(inputs, device, delta_softplus=True)


def test_without_softplus(device):
    inputs = inputs_in(torch.float32, length=5)
    inputs["delta"], inputs["delta_bias"] = inputs["delta"].abs(), inputs["delta_bias"].abs()
    assert_agrees(inputs, device)


def test_loss_on_one_output_alone(device):
    inputs = {k: v.to(device) for k, v in inputs_in(torch.float32, length=4).items()}
    results = run(inputs, "triton", delta_softplus=True, with_last=False)
    expected = run({k: v.double() for k, v in inputs.items()}, "torch", delta_softplus=True, with_last=False)
    assert max(relative_error(results[name], expected[name]) for name in results) < TOLERANCE[torch.float32]

    inputs = {k: v.requires_grad_() for k, v in inputs.items()}
    _, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend="triton")
    last.sum().backward()
    assert inputs["C"].grad is None or not inputs["C"].grad.any()
    assert inputs["u"].grad.any()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(device, sizes, dtype):
    inputs = inputs_in(dtype, batch=1, length=sizes(8, 200), width=sizes(6, 96))
    results = assert_agrees(inputs, device, TOLERANCE[dtype], delta_softplus=True, order=torch.randperm(sizes(8, 200)))
    assert results["y"].dtype == dtype
    assert results["last"].dtype == torch.float32


def test_mixed_dtypes(device):
    inputs = inputs_in(torch.float32, length=5)
    for name, dtype in (("delta", torch.bfloat16), ("B", torch.float16), ("z", torch.bfloat16), ("A", torch.float16)):
        inputs[name] = inputs[name].to(dtype)
    results = assert_agrees(inputs, device, TOLERANCE[torch.bfloat16], delta_softplus=True)
    assert (
        relative_error(
            results["y"], run({k: v.to(device).double() for k, v in inputs.items()}, "torch", delta_softplus=True)["y"]
        )
        < TOLERANCE[torch.float32]
    )


def test_strided_inputs_among_poisoned_memory(device):
    batch, length, width, state = 2, 5, 6, 4
    tensors = {k: v.to(device) for k, v in inputs_in(torch.float32, batch=batch, length=length).items()}
    xz = torch.full((batch, length + 2, 2 * width + 3), torch.nan, device=device)
    x_dbl = torch.full((batch, length, 2 * state + 5), torch.nan, device=device)
    views = dict(tensors)
    views["u"], views["z"] = xz[:, 1:-1, 1 : 1 + width], xz[:, 1:-1, 2 + width : 2 + 2 * width]
    views["B"], views["C"] = x_dbl[..., None, 3 : 3 + state], x_dbl[..., None, 4 + state : 4 + 2 * state]
    views["delta"] = torch.full((width, batch, length), torch.nan, device=device).permute(1, 2, 0)
    views["A"] = torch.full((state, width), torch.nan, device=device).T
    views["D"] = torch.full((2 * width,), torch.nan, device=device)[::2]
    for name, view in views.items():
        view.copy_(tensors[name])
    leaves = {k: v.detach().requires_grad_() for k, v in views.items()}
    results = differentiate(leaves, "triton", delta_softplus=True)
    expected = run(tensors, "triton", delta_softplus=True)
    for name, result in results.items():
        torch.testing.assert_close(result, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_gradient_that_is_an_expanded_number(device):
    inputs = {k: v.to(device).requires_grad_() for k, v in inputs_in(torch.float32, length=4).items()}
    selective_scan(**inputs, delta_softplus=True, backend="triton").sum().backward()
    expected = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}
    selective_scan(**expected, delta_softplus=True, backend="torch").sum().backward()
    assert all(relative_error(inputs[k].grad, expected[k].grad) < 3e-6 for k in inputs)


@pytest.mark.parametrize("with_order", [False, True])
def test_segments_of_a_long_sequence(device, sizes, monkeypatch, with_order):
    """A batch too small for the GPU: the sequence is cut, and the parts are chained."""
    monkeypatch.setattr(plan, "SHORTEST_SEGMENT", sizes(8, 64))
    monkeypatch.setattr(plan, "multiprocessors", lambda tensor: 100)
    length = sizes(33, 4099)
    inputs = inputs_in(torch.float32, batch=1, length=length, width=sizes(4, 64))
    order = torch.randperm(length) if with_order else None
    cut = plan.Segments.of(plan.Sizes.of(inputs["u"], inputs["B"]), inputs["u"])
    assert cut.parts > 2
    assert_agrees(inputs, device, delta_softplus=True, order=order)


@pytest.mark.parametrize(("with_order", "cut"), [(False, False), (True, False), (True, True)])
def test_packed_sequences(device, sizes, monkeypatch, with_order, cut):
    """The state starts anew, also where the sequence is cut into segments."""
    if cut:
        monkeypatch.setattr(plan, "SHORTEST_SEGMENT", sizes(8, 64))
        monkeypatch.setattr(plan, "multiprocessors", lambda tensor: 100)
    length = sizes(33, 4099) if cut else sizes(19, 200)
    inputs = inputs_in(torch.float32, batch=2, length=length, width=sizes(3, 40), state=3)
    seq_idx = (torch.arange(length) >= torch.tensor([[length // 2], [2]])).long() + (torch.arange(length) > length - 3)
    order = torch.randperm(length) if with_order else None
    assert_agrees(inputs, device, delta_softplus=True, order=order, seq_idx=seq_idx.to(device))


def test_same_bits_every_time(device, sizes):
    inputs = {k: v.to(device) for k, v in inputs_in(torch.bfloat16, length=sizes(5, 300), width=sizes(6, 640)).items()}
    first = run(inputs, "triton", delta_softplus=True)
    for name, value in run(inputs, "triton", delta_softplus=True).items():
        assert torch.equal(first[name], value), name


def test_nan_and_inf_propagate(device):
    inputs = {k: v.to(device) for k, v in inputs_in(torch.float32, batch=1, length=6).items()}
    inputs["u"][0, 2, 1] = torch.nan
    inputs["u"][0, 3, 2] = torch.inf
    y = selective_scan(**inputs, delta_softplus=True, backend="triton")
    expected = selective_scan(**inputs, delta_softplus=True, backend="torch")
    assert torch.equal(torch.isfinite(y), torch.isfinite(expected))
    assert y[0, 2:, 1].isnan().all()


def test_an_infinite_step_is_nan_where_the_definition_is(device):
    """It wipes the state out; states that fill a tile up must not answer with NaN."""
    inputs = {k: v.to(device) for k, v in inputs_in(torch.float32, batch=1, length=5, width=2, state=3).items()}
    inputs["delta"][0, 2, 1] = torch.inf
    results = run(inputs, "triton", delta_softplus=True)
    expected = run({k: v.double() for k, v in inputs.items()}, "reference", delta_softplus=True)
    for name, value in results.items():
        assert torch.equal(value.isnan(), expected[name].isnan()), name


def test_tiny_step_sizes_keep_their_precision(device):
    """softplus(-20) = 2e-9: log(1 + x) of a number below the rounding of 1."""
    inputs = {k: v.to(device) for k, v in inputs_in(torch.float32, length=3).items()}
    del inputs["initial_state"], inputs["D"], inputs["z"]
    inputs["delta"] = inputs["delta"] - 20
    y = selective_scan(**inputs, delta_softplus=True, backend="triton")
    expected = selective_scan(**{k: v.double() for k, v in inputs.items()}, delta_softplus=True, backend="torch")
    assert relative_error(y, expected) < 3e-6


@pytest.mark.cuda
def test_more_than_two_to_the_31_elements(device):
    length, width = 2**16 + 1, 2**15
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    u = torch.randn(1, length, width, device=device, dtype=torch.bfloat16)
    delta = torch.full_like(u, -1.0)
    A = -torch.rand(width, 4, device=device) - 0.1
    B, C = torch.randn(2, 1, length, 4, device=device)
    y = selective_scan(u, delta, A, B, C, delta_softplus=True, backend="triton")
    tail = slice(width - 8, width)
    expected = selective_scan(
        u[..., tail].double(),
        delta[..., tail].double(),
        A[tail].double(),
        B.double(),
        C.double(),
        delta_softplus=True,
        backend="torch",
    )
    assert relative_error(y[..., tail], expected) < 1e-2


@pytest.mark.cuda
def test_second_gpu(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    inputs = {k: v.to("cuda:1").requires_grad_() for k, v in inputs_in(torch.float32).items()}
    assert torch.cuda.current_device() == 0
    selective_scan(**inputs, delta_softplus=True, backend="triton").sum().backward()
    assert inputs["u"].grad.device.index == 1
