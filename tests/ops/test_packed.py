"""Several sequences in one row of a batch: resets of the scan, taps of the convolution, states in and out."""

import pytest
import torch
from support import relative_error, scan_inputs
from torch.testing import assert_close

from wavemamba import BackendUnavailable, ShapeError
from wavemamba.ops import causal_conv1d, selective_scan
from wavemamba.ops.causal_conv1d import mamba_ssm as conv_package
from wavemamba.ops.dispatch.backend import Case
from wavemamba.ops.selective_scan import mamba_ssm as scan_package

OPS = {"scan": selective_scan, "conv": causal_conv1d}


def conv_inputs(length, width=4, batch=2, channels=40):
    generator = torch.Generator().manual_seed(length)
    shapes = {"x": (batch, length, channels), "weight": (channels, width), "bias": (channels,)}
    shapes["initial_state"] = (batch, width - 1, channels)
    return {k: torch.randn(shape, generator=generator, dtype=torch.float64) for k, shape in shapes.items()}


def inputs_of(op, length, **sizes):
    if op == "conv":
        return conv_inputs(length, **sizes), {"activation": "silu"}
    return scan_inputs(length=length, width=40, state=5, groups=2, **sizes), {"delta_softplus": True}


def differentiate(op, inputs, backend, **options):
    inputs = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
    results = OPS[op](**inputs, **options, return_last_state=True, backend=backend)
    generator = torch.Generator().manual_seed(1)
    flowing = [torch.randn(r.shape, generator=generator).to(r.dtype) for r in results]
    gradients = torch.autograd.grad(results, list(inputs.values()), flowing)
    return dict(zip(("y", "last", *inputs), (*results, *gradients), strict=True))


def numbers(length, order, batch=2):
    """Sequence numbers with lengths from one step on; with an order rows of one sequence may lie apart."""
    generator = torch.Generator().manual_seed(length)
    drawn = torch.randint(0, 3, (batch, length), generator=generator)
    return (drawn == 0).long().cumsum(1) if order is None else drawn


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("with_order", [False, True])
@pytest.mark.parametrize("length", [1, 2, 33, 70])
@pytest.mark.parametrize("op", OPS)
def test_against_the_definition(op, length, with_order, backend):
    order = torch.randperm(length) if with_order else None
    inputs, options = inputs_of(op, length)
    options |= {"order": order, "seq_idx": numbers(length, order)}
    expected = differentiate(op, inputs, "reference", **options)
    results = differentiate(op, {k: v.float() for k, v in inputs.items()}, backend, **options)
    errors = {name: relative_error(results[name], expected[name]) for name in results}
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.parametrize("width", [1, 2, 7])
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_every_width_of_the_convolution(width, backend):
    inputs = conv_inputs(9, width)
    seq_idx = torch.tensor([[0, 1, 1, 2, 3, 3, 3, 3, 3], [5, 5, 5, 5, 5, 5, 5, 5, 6]])
    expected = differentiate("conv", inputs, "reference", seq_idx=seq_idx)
    results = differentiate("conv", {k: v.float() for k, v in inputs.items()}, backend, seq_idx=seq_idx.int())
    for name, value in results.items():
        assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
@pytest.mark.parametrize("op", OPS)
def test_a_packed_row_is_its_sequences_one_by_one(op, backend):
    """The initial state enters the first sequence, and the last state is that of the last one."""
    lengths = (5, 1, 40, 3)
    inputs, options = inputs_of(op, sum(lengths))
    inputs = {k: v.float() for k, v in inputs.items()}
    along = {"u", "delta", "B", "C", "z", "x"} & set(inputs)
    seq_idx = torch.arange(4).repeat_interleave(torch.tensor(lengths)).expand(2, -1)
    y, last = OPS[op](**inputs, **options, seq_idx=seq_idx, return_last_state=True, backend=backend)
    parts, first = [], 0
    for number, length in enumerate(lengths):
        own = {k: v[:, first : first + length] if k in along else v for k, v in inputs.items()}
        if number > 0:
            del own["initial_state"]
        part, own_last = OPS[op](**own, **options, return_last_state=True, backend=backend)
        parts.append(part)
        first += length
    assert_close(y, torch.cat(parts, dim=1))
    assert_close(last, own_last)


@pytest.mark.parametrize("with_order", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 6])
def test_the_convolution_goes_on_from_its_last_state(cut, with_order):
    inputs = {k: v.float() for k, v in conv_inputs(7).items()}
    x = inputs.pop("x")
    seq_idx = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]])
    whole = causal_conv1d(x, **inputs, seq_idx=seq_idx)
    order, shown = None, x[:, :cut]
    if with_order:
        order = torch.arange(cut).flip(0)
        shown = shown.flip(1)
    packed = seq_idx[:, :cut].flip(1) if with_order else seq_idx[:, :cut]
    _, state = causal_conv1d(shown, **inputs, order=order, seq_idx=packed, return_last_state=True)
    assert state.shape == (2, 3, 40)
    goes_on = seq_idx[:, cut] == seq_idx[:, cut - 1]
    rest = causal_conv1d(x[:, cut:], **inputs | {"initial_state": state}, seq_idx=seq_idx[:, cut:])
    assert_close(rest[goes_on], whole[goes_on, cut:])
    _, unpacked = causal_conv1d(x, **inputs, return_last_state=True)
    assert torch.equal(unpacked, x[:, -3:])


@pytest.mark.parametrize("op", OPS)
def test_gradients_by_differences(op):
    inputs, options = (conv_inputs(5, 3, 1, 2), {}) if op == "conv" else (scan_inputs(1, 5, 2, 2), {})
    values = [v.requires_grad_() for v in inputs.values()]
    seq_idx = torch.tensor([[0, 0, 1, 1, 2]])

    def call(*tensors):
        named = dict(zip(inputs, tensors, strict=True))
        return OPS[op](**named, **options, seq_idx=seq_idx, return_last_state=True, backend="torch")

    assert torch.autograd.gradcheck(call, values)


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nothing_leaks_from_one_sequence_into_another(op, backend, value):
    inputs, options = inputs_of(op, 40)
    inputs = {k: v.float() for k, v in inputs.items()}
    seq_idx = (torch.arange(40) >= 20).long().expand(2, -1)
    inputs["u" if op == "scan" else "x"][:, 19] = value
    y, last = OPS[op](**inputs, **options, seq_idx=seq_idx, return_last_state=True, backend=backend)
    assert y[:, 20:].isfinite().all()
    assert last.isfinite().all()
    assert not y[:, 19].isfinite().any()


@pytest.mark.parametrize("op", OPS)
def test_numbers_that_do_not_fit_are_refused(op):
    inputs, _ = inputs_of(op, 5)
    for seq_idx, message in (
        (torch.zeros(2, 5), r"seq_idx: expected a tensor \(B, L\) of int64 or int32, got torch.float32"),
        ([[0] * 5] * 2, "got list"),
        (torch.zeros(5, dtype=torch.int64), r"seq_idx: expected \(B, L\)"),
        (torch.zeros(2, 5, dtype=torch.int64, device="meta"), "seq_idx: expected the device"),
    ):
        with pytest.raises(ShapeError, match=message):
            OPS[op](**inputs, seq_idx=seq_idx)


@pytest.mark.parametrize("op", OPS)
def test_one_graph(op):
    inputs, options = inputs_of(op, 6)
    inputs = {k: v.float() for k, v in inputs.items()}
    seq_idx = numbers(6, None)

    def call(seq_idx):
        return OPS[op](**inputs, **options, seq_idx=seq_idx, return_last_state=True)

    for result, expected in zip(
        torch.compile(call, fullgraph=True, backend="aot_eager")(seq_idx), call(seq_idx), strict=True
    ):
        assert_close(result, expected)


def test_what_the_packages_take():
    assert "one sequence a row" in scan_package.refuses(Case("selective_scan", "cuda", torch.float32, ("seq_idx",)))
    sizes = {"width": 4, "channels": 16}
    both = Case("causal_conv1d", "cuda", torch.float32, ("initial_state", "seq_idx"), sizes)
    assert "not both" in conv_package.refuses(both)
    odd = Case("causal_conv1d", "cuda", torch.float32, ("seq_idx",), sizes | {"channels": 12})
    assert "multiples of 8" in conv_package.refuses(odd)
    inputs, _ = inputs_of("conv", 5)
    with pytest.raises(BackendUnavailable):
        causal_conv1d(**inputs, seq_idx=numbers(5, None), backend="mamba_ssm")
