import math

import pytest
import torch
import torch.nn.functional as F
from support import relative_error

from wavemamba import ConfigError, MambaMixer, ShapeError, scan_order


def randomised(mixer):
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer.double()


def test_mixer_is_its_equation():
    """The block of the Mamba paper, written out step by step."""
    mixer = randomised(MambaMixer(8))
    tokens = torch.randn(1, 7, 8, dtype=torch.float64)
    ssm = mixer.directions[0]
    x, z = (tokens @ mixer.in_proj.weight.T).chunk(2, -1)
    padded = F.pad(x, (0, 0, 3, 0))
    x = F.silu(sum(padded[:, k : k + 7] * ssm.conv_weight[:, k] for k in range(4)) + ssm.conv_bias)
    dt, B, C = (x @ ssm.x_proj.weight.T).split([1, 16, 16], -1)
    delta = F.softplus(dt @ ssm.dt_proj.weight.T + ssm.dt_bias)
    A, state, rows = -torch.exp(ssm.A_log), torch.zeros(1, 16, 16, dtype=torch.float64), []
    for step in range(7):
        d = delta[:, step, :, None]
        state = torch.exp(d * A) * state + d * x[:, step, :, None] * B[:, step, None]
        rows.append((state * C[:, step, None]).sum(-1) + ssm.D * x[:, step])
    expected = (torch.stack(rows, 1) * F.silu(z)) @ mixer.out_proj.weight.T
    assert relative_error(mixer(tokens), expected) < 1e-12


@pytest.mark.parametrize("bidirectional", [False, True])
def test_order_is_gather_mix_scatter(bidirectional):
    mixer = randomised(MambaMixer(8, bidirectional=bidirectional))
    tokens, order = torch.randn(2, 12, 8, dtype=torch.float64), scan_order("hilbert")
    permutation = order.permutation(3, 4)
    expected = mixer(tokens[:, permutation])[:, order.inverse(3, 4)]
    assert relative_error(mixer(tokens, order=permutation), expected) < 1e-12
    assert relative_error(mixer(tokens, order=order, grid=(3, 4)), expected) < 1e-12


def test_second_direction_is_the_first_one_backwards():
    mixer = randomised(MambaMixer(8, bidirectional=True))
    mixer.directions[1].load_state_dict(mixer.directions[0].state_dict())
    tokens = torch.randn(2, 9, 8, dtype=torch.float64)
    assert relative_error(mixer(tokens.flip(1)).flip(1), mixer(tokens)) < 1e-12


def test_conditioning_reaches_the_first_tokens_and_gets_a_gradient():
    mixer = MambaMixer(8, cond_dim=5, conditioning="conv_state")
    tokens, cond = torch.randn(2, 9, 8), torch.randn(2, 5, requires_grad=True)
    y = mixer(tokens, cond)
    assert not torch.allclose(y[:, 0], mixer(tokens, 2 * cond)[:, 0])
    y.sum().backward()
    assert cond.grad.abs().min() > 0
    assert mixer.cond_proj.weight.grad.abs().sum() > 0


def test_initialisation_follows_the_mamba_paper():
    torch.manual_seed(0)
    ssm = MambaMixer(64).directions[0]
    dt = F.softplus(ssm.dt_bias)
    assert 1e-3 <= dt.min() < 2e-3
    assert 5e-2 < dt.max() <= 1e-1 + 1e-6
    assert abs(dt.log().mean() - 0.5 * (math.log(1e-3) + math.log(1e-1))) < 0.5
    assert torch.allclose(ssm.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    assert torch.equal(ssm.D, torch.ones(128))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_short_sequences(length):
    assert MambaMixer(8)(torch.randn(2, length, 8)).shape == (2, length, 8)


def test_bad_input_is_named():
    mixer = MambaMixer(8)
    with pytest.raises(ShapeError, match=r"x: expected \(B, L, C\)"):
        mixer(torch.randn(2, 5, 7))
    with pytest.raises(ShapeError, match="grid"):
        mixer(torch.randn(2, 6, 8), order=scan_order("snake"))
    with pytest.raises(ShapeError, match="grid"):
        mixer(torch.randn(2, 6, 8), order=scan_order("snake"), grid=(2, 2))
    with pytest.raises(ShapeError, match="order"):
        mixer(torch.randn(2, 6, 8), order=torch.arange(5))
    with pytest.raises(ConfigError, match="conv_state"):
        MambaMixer(8, conditioning="conv")
    for name, size in (("d_conv", 0), ("d_state", 0), ("expand", 1.5), ("dt_rank", "aut"), ("dim", -8)):
        with pytest.raises(ConfigError, match=f"{name}: expected an int >= 1"):
            MambaMixer(**{"dim": 8, name: size})
    with pytest.raises(ConfigError, match="cond_dim"):
        MambaMixer(8, conditioning="conv_state")
    with pytest.raises(ShapeError, match="cond"):
        MambaMixer(8, cond_dim=4, conditioning="conv_state")(torch.randn(2, 5, 8))
