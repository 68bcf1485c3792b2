import math

import pytest
import torch
import torch.nn.functional as F
from support import relative_error

from wavemamba import ConfigError, ShapeError
from wavemamba.layers import Mamba2Mixer


def randomised(mixer):
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer.double()


def test_mixer_is_its_equation():
    """The block of the Mamba-2 paper, written out step by step."""
    mixer = randomised(Mamba2Mixer(6, d_state=5, head_dim=4))
    tokens = torch.randn(2, 70, 6, dtype=torch.float64)
    ssm = mixer.directions[0]
    z, xBC, dt = (tokens @ mixer.in_proj.weight.T).split([12, 22, 3], -1)
    padded = F.pad(xBC, (0, 0, 3, 0))
    xBC = F.silu(sum(padded[:, k : k + 70] * ssm.conv_weight[:, k] for k in range(4)) + ssm.conv_bias)
    x, B, C = xBC.split([12, 5, 5], -1)
    x, delta, A = x.unflatten(-1, (3, 4)), F.softplus(dt + ssm.dt_bias), -torch.exp(ssm.A_log)
    state, rows = torch.zeros(2, 3, 4, 5, dtype=torch.float64), []
    for step in range(70):
        d = delta[:, step, :, None, None]
        drive = d * x[:, step, :, :, None] * B[:, step, None, None]
        state = torch.exp(d * A[:, None, None]) * state + drive
        rows.append((state * C[:, step, None, None]).sum(-1) + ssm.D[:, None] * x[:, step])
    gated = torch.stack(rows, 1).flatten(2) * F.silu(z)
    normed = gated / torch.sqrt(gated.square().mean(-1, keepdim=True) + 1e-5) * mixer.norm.weight
    assert relative_error(mixer(tokens), normed @ mixer.out_proj.weight.T) < 1e-12


def test_conditioning_reaches_the_first_tokens_and_gets_a_gradient():
    mixer = Mamba2Mixer(8, cond_dim=5, conditioning="conv_state")
    tokens, cond = torch.randn(2, 9, 8), torch.randn(2, 5, requires_grad=True)
    y = mixer(tokens, cond)
    assert not torch.allclose(y[:, 0], mixer(tokens, 2 * cond)[:, 0])
    y.sum().backward()
    assert cond.grad.abs().min() > 0
    assert mixer.cond_proj.weight.grad.abs().sum() > 0


def test_initialisation_follows_mamba_ssm():
    torch.manual_seed(0)
    ssm = Mamba2Mixer(512, head_dim=4).directions[0]
    dt = F.softplus(ssm.dt_bias)
    assert 1e-3 <= dt.min() < 2e-3
    assert 5e-2 < dt.max() <= 1e-1 + 1e-6
    assert abs(dt.log().mean() - 0.5 * (math.log(1e-3) + math.log(1e-1))) < 0.5
    assert 1 <= ssm.A_log.exp().min() < 1.5
    assert 15.5 < ssm.A_log.exp().max() <= 16
    assert torch.equal(ssm.D, torch.ones(256))
    assert ssm.conv_weight.abs().max() <= 0.5
    assert ssm.A_log._no_weight_decay


@pytest.mark.parametrize(("dim", "heads", "width"), [(64, 2, 64), (48, 2, 48), (5, 1, 10), (96, 3, 64), (67, 67, 2)])
def test_the_heads_fit_any_width(dim, heads, width):
    mixer = Mamba2Mixer(dim, d_state=4)
    assert (mixer.heads, mixer.head_dim) == (heads, width)
    assert mixer(torch.randn(1, 3, dim)).shape == (1, 3, dim)


def test_bad_input_is_named():
    for name, size in (("d_conv", 0), ("d_state", 0), ("expand", 1.5), ("head_dim", 0), ("dim", -8)):
        with pytest.raises(ConfigError, match=f"{name}: expected an int >= 1"):
            Mamba2Mixer(**{"dim": 8, name: size})
    with pytest.raises(ConfigError, match="head_dim: expected a divisor of the inner width 16, got 3"):
        Mamba2Mixer(8, head_dim=3)
    with pytest.raises(ConfigError, match="did you mean 'conv_state'"):
        Mamba2Mixer(8, conditioning="conv_stat")
    with pytest.raises(ConfigError, match="cond_dim"):
        Mamba2Mixer(8, conditioning="conv_state")
    with pytest.raises(ShapeError, match="cond"):
        Mamba2Mixer(8, cond_dim=4, conditioning="conv_state")(torch.randn(2, 5, 8))


def test_print_says_how_it_was_built():
    text = repr(Mamba2Mixer(8, d_state=4, bidirectional=True, cond_dim=3, conditioning="conv_state"))
    assert "(8, d_state=4, d_conv=4, expand=2, head_dim=16, bidirectional=True, cond_dim=3" in text.replace("\n  ", "")
