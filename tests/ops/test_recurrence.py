"""The linear recurrence as an operator: what a graph for any length calls."""

import pytest
import torch
from support import relative_error

from wavemamba.ops.recurrence import linear_recurrence

OP = torch.ops.wavemamba.linear_recurrence.default


def inputs(length, starts, wide_decay=True):
    generator = torch.Generator().manual_seed(length)
    value = torch.randn(2, length, 3, 4, dtype=torch.float64, generator=generator)
    decay = torch.rand(2, length, 3, 4 if wide_decay else 1, dtype=torch.float64, generator=generator)
    chosen = torch.rand(2, length, 1, 1, generator=generator) < 0.3 if starts else None
    return decay.requires_grad_(), value.requires_grad_(), chosen


@pytest.mark.parametrize("wide_decay", [True, False])
@pytest.mark.parametrize("starts", [True, False])
@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_values_and_gradients_are_those_of_the_sums(length, starts, wide_decay):
    given = inputs(length, starts, wide_decay)
    results = [call(*given) for call in (OP, linear_recurrence)]
    assert torch.equal(*results)
    weight = torch.randn_like(results[0])
    gradients = [
        torch.autograd.grad((y * weight).sum(), given[:2], allow_unused=True, materialize_grads=True) for y in results
    ]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-12)


def test_what_is_not_finite_stays_in_its_sequence():
    decay, value, _ = (t if t is None else t.detach() for t in inputs(6, False))
    value[:, 1], decay[:, 3] = torch.inf, torch.nan
    starts = torch.zeros(2, 6, 1, 1, dtype=torch.bool)
    starts[:, 3] = True
    leaves = decay.requires_grad_(), value.requires_grad_()
    y = OP(*leaves, starts)
    assert y[:, 3:].isfinite().all()
    gradients = torch.autograd.grad(y[:, 3:].sum(), leaves)
    assert all(gradient.isfinite()[:, 3:].all() for gradient in gradients)


@pytest.mark.parametrize("starts", [True, False])
def test_the_operator_is_well_declared(starts):
    torch.library.opcheck(OP, inputs(5, starts))


def test_one_graph_for_any_length():
    torch._dynamo.reset()
    compiled = torch.compile(linear_recurrence, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (5, 2, 64, 9):
            decay, value, starts = inputs(length, starts=True)
            one, other = (
                torch.autograd.grad(call(decay, value, starts).square().sum(), (decay, value))
                for call in (compiled, linear_recurrence)
            )
            assert max(map(relative_error, one, other)) < 1e-12
