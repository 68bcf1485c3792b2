import pytest
import torch
import torch.nn.functional as F
from support import relative_error

from wavemamba import ConfigError
from wavemamba.layers import GLAMixer


def test_mixer_is_its_equation():
    """The layer of the paper, written out step by step."""
    mixer = GLAMixer(6, d_state=5, num_heads=2, gate_rank=3)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mixer = mixer.double()
    tokens = torch.randn(2, 70, 6, dtype=torch.float64)
    q, k, v, g, low = (tokens @ mixer.in_proj.weight.T).split([10, 10, 6, 6, 3], -1)
    decay = torch.sigmoid(low @ mixer.directions[0].up.weight.T + mixer.directions[0].bias) ** (1 / 16)
    q, k, decay = (t.unflatten(-1, (2, 5)) for t in (q, k, decay))
    v, state, rows = v.unflatten(-1, (2, 3)), torch.zeros(2, 2, 5, 3, dtype=torch.float64), []
    for step in range(70):
        state = decay[:, step, ..., None] * state + k[:, step, ..., None] * v[:, step, :, None]
        rows.append((q[:, step, ..., None] * state).sum(2) / 5**0.5)
    y = torch.stack(rows, 1)
    normed = y / torch.sqrt(y.square().mean(-1, keepdim=True) + 1e-5) * mixer.norm.weight
    expected = (normed.flatten(2) * F.silu(g)) @ mixer.out_proj.weight.T
    assert relative_error(mixer(tokens), expected) < 1e-12


def test_half_of_the_state_is_kept_over_16_steps_at_the_start():
    decay = GLAMixer(8).directions[0]
    assert torch.allclose(decay(torch.zeros(1, 16)).exp() ** 16, torch.tensor(0.5))


def test_decays_are_float32_under_autocast():
    """Rounded to bfloat16 they would forget: 1 - 1e-3 and 1 are one number there."""
    torch.manual_seed(0)
    mixer = GLAMixer(16)
    torch.nn.init.constant_(mixer.directions[0].bias, 4.0)
    x = torch.randn(1, 400, 16)
    expected = mixer(x, return_state=True)[1].memory
    with torch.autocast("cpu", torch.bfloat16):
        memory = mixer(x, return_state=True)[1].memory
    assert memory.dtype == torch.float32
    assert relative_error(memory, expected) < 2e-2


@pytest.mark.parametrize(("dim", "heads", "keys"), [(64, 4, 8), (6, 3, 1), (7, 1, 3), (1, 1, 1)])
def test_the_heads_fit_any_width(dim, heads, keys):
    mixer = GLAMixer(dim)
    assert (mixer.num_heads, mixer.d_state) == (heads, keys)
    assert mixer(torch.randn(1, 3, dim)).shape == (1, 3, dim)


def test_bad_input_is_named():
    for name in ("d_state", "gate_rank", "dim"):
        with pytest.raises(ConfigError, match=f"{name}: expected an int >= 1"):
            GLAMixer(**{"dim": 8, name: 0})
    with pytest.raises(ConfigError, match="num_heads: expected a divisor of the width 8, got 3"):
        GLAMixer(8, num_heads=3)


def test_print_says_how_it_was_built():
    text = repr(GLAMixer(8, num_heads=2, bidirectional=True))
    assert "8, d_state=2, num_heads=2, gate_rank=16, bidirectional=True" in text
