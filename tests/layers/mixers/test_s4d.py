import math

import pytest
import torch
from support import relative_error

from wavemamba import ConfigError, ShapeError, scan_order
from wavemamba.layers import S4DMixer, undecayed_names

LENGTHS = (1, 2, 31, 32, 33, 129)


def build(d_state=6, dim=5):
    torch.manual_seed(0)
    return S4DMixer(dim, d_state=d_state).double()


def loop(mixer, x):
    """The recurrence, step by step, in complex numbers."""
    A, dt = torch.complex(-mixer.A_log.exp(), mixer.A_imag), mixer.log_dt.exp()[:, None]
    decay, C = torch.exp(dt * A), torch.view_as_complex(mixer.C)
    state, rows = torch.zeros(x.shape[0], *A.shape, dtype=A.dtype), []
    for step in x.unbind(1):
        state = decay * state + (decay - 1) / A * step[..., None]
        rows.append(2 * (C * state).sum(-1).real + mixer.D * step)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("length", LENGTHS)
def test_output_and_every_gradient_are_those_of_the_recurrence(length):
    mixer, x = build(), torch.randn(2, length, 5, dtype=torch.float64)
    weight, wrt = torch.randn_like(x), (x.requires_grad_(), *mixer.parameters())
    expected, y = loop(mixer, x), mixer(x)
    assert relative_error(y, expected) < 1e-12
    gradients, expected_gradients = (torch.autograd.grad((out * weight).sum(), wrt) for out in (y, expected))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, expected_gradient) < 1e-10


def test_it_is_a_smooth_function_of_everything():
    mixer, x = build(), torch.randn(1, 4, 5, dtype=torch.float64, requires_grad=True)
    names, values = zip(*mixer.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize("length", [64, 1000, 4096])
def test_float32_and_16_bit_inputs_stay_near_float64(length):
    mixer, x = build(64, 8), torch.randn(2, length, 8, dtype=torch.float64)
    expected = mixer(x)
    mixer.float()
    assert relative_error(mixer(x.float()), expected) < 2e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(mixer(x.float()), expected) < 2e-6
    y = mixer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert relative_error(y, expected) < 1e-2


def test_order_is_gather_mix_scatter():
    mixer, tokens, order = build(), torch.randn(2, 12, 5, dtype=torch.float64), scan_order("hilbert")
    permutation = order.permutation(3, 4)
    expected = mixer(tokens[:, permutation])[:, order.inverse(3, 4)]
    assert relative_error(mixer(tokens, order=permutation), expected) < 1e-12
    assert relative_error(mixer(tokens, order=order, grid=(3, 4)), expected) < 1e-12


def test_no_step_sees_a_later_one():
    mixer, x = build(), torch.randn(1, 40, 5, dtype=torch.float64)
    later = x.clone()
    later[:, 25:] += 1
    assert relative_error(mixer(later)[:, :25], mixer(x)[:, :25]) < 1e-12


def test_strides_and_empty_batches():
    mixer, x = build(), torch.randn(2, 9, 10, dtype=torch.float64)[..., ::2]
    assert relative_error(mixer(x), mixer(x.contiguous())) < 1e-12
    assert mixer(x[:0]).shape == (0, 9, 5)


def test_initialisation_follows_the_s4d_paper():
    torch.manual_seed(0)
    mixer = S4DMixer(256)
    dt = mixer.log_dt.exp()
    assert 1e-3 <= dt.min() < 2e-3
    assert 5e-2 < dt.max() <= 1e-1
    assert torch.allclose(mixer.A_log.exp(), torch.full((256, 32), 0.5))
    assert torch.allclose(mixer.A_imag, math.pi * torch.arange(32.0).expand(256, 32))
    assert abs(mixer.C.var() - 0.5) < 0.02
    assert undecayed_names(mixer) == {"log_dt", "A_log", "A_imag", "D"}


def test_one_graph_for_any_length():
    mixer = build()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (5, 40, 70):
        x = torch.randn(2, length, 5, dtype=torch.float64)
        assert relative_error(compiled(x), mixer(x)) < 1e-12


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="d_state: expected an even number"):
        S4DMixer(8, d_state=3)
    with pytest.raises(ConfigError, match="dim: expected an int >= 1"):
        S4DMixer(0)
    with pytest.raises(ShapeError, match=r"x: expected \(B, L, C\)"):
        S4DMixer(8)(torch.randn(2, 3, 7))
    with pytest.raises(ShapeError, match="cond: expected None"):
        S4DMixer(8)(torch.randn(2, 3, 8), torch.randn(2, 4))
    with pytest.raises(ShapeError, match="order"):
        S4DMixer(8)(torch.randn(2, 3, 8), order=torch.tensor([0, 0, 1]))
