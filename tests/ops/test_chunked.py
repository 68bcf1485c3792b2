"""What the ops that take chunks of steps promise alike: they are their definition, also where numbers are extreme."""

import math

import pytest
import torch
from support import relative_error
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from wavemamba.ops import gla_scan, ssd_scan

OPS = {"ssd": ssd_scan, "gla": gla_scan}
DECAY = {"ssd": "dt", "gla": "log_decay"}
LENGTHS = [(1, 4), (2, 1), (13, 4), (13, 64), (16, 4), (63, 8), (130, 50)]


def inputs(op, length=13, dtype=torch.float64, batch=2, keys=5, values=3):
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    if op == "gla":
        rows = {name: normal(batch, length, 2, keys) for name in ("q", "k", "log_decay")}
        rows["log_decay"] = -rows["log_decay"].abs()
        return {**rows, "v": normal(batch, length, 2, values), "initial_state": normal(batch, 2, keys, values)}
    rows = {name: normal(batch, length, 2, keys) for name in ("B", "C")}
    rows |= {name: normal(batch, length, 4, values) for name in ("x", "z")}
    rows |= {"dt": normal(batch, length, 4).abs(), "A": -normal(4).abs() - 0.1, "D": normal(4)}
    return {**rows, "initial_state": normal(batch, 4, values, keys)}


def packed(length, batch=2):
    return torch.randint(0, 4, (batch, length), generator=torch.Generator().manual_seed(1)).sort(dim=1).values


def differentiated(op, given, backend, **options):
    leaves = {name: value.detach().clone().requires_grad_() for name, value in given.items()}
    y, last = OPS[op](**leaves, **options, return_last_state=True, backend=backend)
    generator = torch.Generator().manual_seed(2)
    flowing = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in (y, last)]
    gradients = torch.autograd.grad((y, last), list(leaves.values()), flowing)
    return {"y": y, "last": last, **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize("with_sequences", [False, True])
@pytest.mark.parametrize(("length", "chunk"), LENGTHS)
@pytest.mark.parametrize("op", OPS)
def test_outputs_and_every_gradient(op, length, chunk, with_sequences):
    options = {"seq_idx": packed(length) if with_sequences else None, "chunk_size": chunk}
    expected = differentiated(op, inputs(op, length), "reference", **options)
    results = differentiated(op, inputs(op, length), "torch", **options)
    for name, truth in expected.items():
        assert relative_error(results[name], truth) < 1e-12, name
    y = OPS[op](**inputs(op, length), **options, backend="torch")
    assert torch.equal(y, results["y"])


@pytest.mark.parametrize("length", [13, 70])
@pytest.mark.parametrize("op", OPS)
def test_without_an_initial_state(op, length):
    given = {name: value for name, value in inputs(op, length).items() if name != "initial_state"}
    expected = OPS[op](**given, backend="reference")
    assert relative_error(OPS[op](**given, backend="torch"), expected) < 1e-12
    _, last = OPS[op](**given, return_last_state=True, backend="torch")
    assert relative_error(last, OPS[op](**given, return_last_state=True, backend="reference")[1]) < 1e-12


@pytest.mark.parametrize("op", OPS)
def test_a_packed_row_is_its_sequences_one_by_one(op):
    lengths, given = (5, 1, 40, 3), inputs(op, 49, batch=1)
    ids = torch.tensor([7, 2, 9, 2]).repeat_interleave(torch.tensor(lengths))[None]  # numbers may come again
    y, last = OPS[op](**given, seq_idx=ids, chunk_size=16, return_last_state=True)
    parts, first = [], 0
    for number, length in enumerate(lengths):
        own = {k: v[:, first : first + length] if v.shape[:2] == (1, 49) else v for k, v in given.items()}
        if number > 0:
            del own["initial_state"]
        part, state = OPS[op](**own, return_last_state=True, backend="reference")
        parts.append(part)
        first += length
    assert relative_error(y, torch.cat(parts, dim=1)) < 1e-12
    assert relative_error(last, state) < 1e-12


@pytest.mark.parametrize("with_sequences", [False, True])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    ("op", "name"),
    [
        *(("ssd", name) for name in ("dt", "x", "B", "C", "z")),
        *(("gla", name) for name in ("q", "k", "v", "log_decay")),
    ],
)
def test_what_is_not_finite_goes_where_the_definition_takes_it(op, name, value, with_sequences):
    """Not to earlier steps of its chunk, not to other sequences, and to later steps as there."""
    length = 40
    ids = (torch.arange(length) // 10).expand(2, -1) if with_sequences else None
    for chunk in (4, 16, 64):
        given = inputs(op, length, torch.float32)
        given[name][(0, 6, 1, *[0] * (given[name].dim() - 3))] = value
        options = {"seq_idx": ids, "chunk_size": chunk, "return_last_state": True}
        expected, results = (OPS[op](**given, **options, backend=backend) for backend in ("reference", "torch"))
        for result, truth in zip(results, expected, strict=True):
            sound = truth.isfinite()
            assert sound.any()
            assert torch.equal(result.isfinite(), sound)
            torch.testing.assert_close(result[sound], truth[sound], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_a_loss_that_is_nan_has_gradients_that_are(op):
    """So that a scaler of gradients notices."""
    given = inputs(op, 20, torch.float32)
    given["x" if op == "ssd" else "v"][:, 6] = math.inf
    leaves = {name: value.requires_grad_() for name, value in given.items()}
    gradients = torch.autograd.grad(OPS[op](**leaves).square().sum(), list(leaves.values()))
    assert all(gradient.isnan().any() for gradient in gradients)


@pytest.mark.parametrize("step", [1e3, 1e6, 1e30])
@pytest.mark.parametrize("op", OPS)
def test_a_strong_decay_costs_the_other_steps_no_digits(op, step):
    given = inputs(op, 48)
    given[DECAY[op]][:, 9] = step if op == "ssd" else -step
    if op == "ssd":
        given["x"][:, 9] /= step  # the step drives the state too
    exact = OPS[op](**given, backend="reference")
    y = OPS[op](**{name: value.float() for name, value in given.items()}, backend="torch")
    for rows in (slice(0, 9), slice(10, None)):
        assert relative_error(y[:, rows], exact[:, rows]) < 1e-6


@pytest.mark.parametrize("op", OPS)
def test_every_decay_that_forgets_leaves_the_step_itself(op):
    given = inputs(op, 40, torch.float32)
    given[DECAY[op]].fill_(3e4 if op == "ssd" else -math.inf)
    results = differentiated(op, given, "torch", chunk_size=16)
    expected = differentiated(op, given, "reference")
    for name, truth in expected.items():
        assert relative_error(results[name], truth) < 1e-6, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_sums_are_float32(op, dtype):
    given = inputs(op, 70, dtype)
    y, last = OPS[op](**given, return_last_state=True)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    exact = OPS[op](**{name: value.double() for name, value in given.items()}, backend="reference")
    assert relative_error(y, exact) < {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, state = OPS[op](**given, return_last_state=True)
    assert torch.equal(again, y)
    assert torch.equal(state, last)


def small(op):
    return {name: value.requires_grad_() for name, value in inputs(op, 3, batch=1, keys=2, values=1).items()}


@pytest.mark.parametrize("with_sequences", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_gradients_by_differences_forward_too(op, with_sequences):
    given = small(op)
    ids = torch.tensor([[0, 0, 1]]) if with_sequences else None

    def call(*values):
        named = dict(zip(given, values, strict=True))
        return OPS[op](**named, seq_idx=ids, chunk_size=2, return_last_state=True, backend="torch")

    assert torch.autograd.gradcheck(call, tuple(given.values()), check_forward_ad=True)


@pytest.mark.parametrize("op", OPS)
def test_second_derivatives(op):
    given = small(op)

    def call(*values):
        return OPS[op](**dict(zip(given, values, strict=True)), chunk_size=2, backend="torch")

    assert torch.autograd.gradgradcheck(call, tuple(given.values()))


@pytest.mark.parametrize("op", OPS)
def test_transforms_of_functions(op):
    several = [inputs(op, length, torch.float64) for length in (20, 20)]
    stacked = {name: torch.stack([given[name] for given in several]) for name in several[0]}

    def loss(given):
        y, last = OPS[op](**given, chunk_size=8, return_last_state=True)
        return y.square().sum() + last.square().sum()

    mapped = torch.vmap(torch.func.grad(loss))(stacked)
    for i, given in enumerate(several):
        for name, gradient in torch.func.grad(loss)(given).items():
            assert relative_error(mapped[name][i], gradient) < 1e-12, name


@pytest.mark.parametrize("with_sequences", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_one_graph(op, with_sequences):
    given, ids = inputs(op, 40, torch.float32), packed(40) if with_sequences else None

    def call(given, ids):
        return OPS[op](**given, seq_idx=ids, chunk_size=16, return_last_state=True)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for result, expected in zip(compiled(given, ids), call(given, ids), strict=True):
        assert relative_error(result, expected) < 1e-6


@pytest.mark.parametrize("with_sequences", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_one_graph_for_any_length(op, with_sequences):
    def call(given, ids):
        return OPS[op](**given, seq_idx=ids, chunk_size=8, return_last_state=True)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (18, 2, 8, 9, 64, 65):  # one chunk, full or not, and several
            given, ids = inputs(op, length, torch.float32), packed(length) if with_sequences else None
            for result, expected in zip(compiled(given, ids), call(given, ids), strict=True):
                assert relative_error(result, expected) < 1e-6


@pytest.mark.parametrize("op", OPS)
def test_shapes_are_known_without_values(op):
    given = {name: value.to("meta") for name, value in inputs(op, 70, torch.bfloat16).items()}
    y, last = OPS[op](**given, return_last_state=True)
    expected = OPS[op](**inputs(op, 70, torch.bfloat16), return_last_state=True)
    assert [(t.shape, t.dtype) for t in (y, last)] == [(t.shape, t.dtype) for t in expected]


class Written(TorchDispatchMode):
    """Numbers written by all calls."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            self.total += tensor.numel() if isinstance(tensor, torch.Tensor) else 0
        return result


@pytest.mark.parametrize("with_sequences", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_cost_is_linear_in_the_steps(op, with_sequences):
    costs = []
    for length in (1024, 8192):
        given = {name: value.to("meta") for name, value in inputs(op, length, torch.float32).items()}
        ids = torch.zeros(2, length, dtype=torch.int64, device="meta") if with_sequences else None
        leaves = {name: value.requires_grad_() for name, value in given.items()}
        with FlopCounterMode(display=False) as flops, Written() as written:
            OPS[op](**leaves, seq_idx=ids).sum().backward()
        costs.append((flops.get_total_flops() / length, written.total / length))
    (products, numbers), (later_products, later_numbers) = costs
    assert later_products == products
    assert later_numbers < 1.05 * numbers


def test_products_are_counted():
    """In chunks of Q steps, a token and head: (Q - 1) K for the pairs, 2 Q V for what they weigh, 4 K V for states."""
    batch, length, heads, keys, values, size = 2, 256, 2, 5, 3, 64
    given = inputs("gla", length)
    with FlopCounterMode(display=False) as flops:
        gla_scan(**given, chunk_size=size)
    each = (size - 1) * keys + 2 * size * values + 4 * keys * values
    assert flops.get_total_flops() == batch * length * heads * each
