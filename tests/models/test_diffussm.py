"""DiffuSSM, which has no released code, is what its paper says."""

import pytest
import torch
import torch.nn.functional as F
from support import relative_error
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wavemamba import ConfigError, ShapeError, create_model
from wavemamba.blocks import DiffuSSMBlock
from wavemamba.layers import S4DMixer

SMALL = {"dim": 16, "depth": 2, "img_size": 8, "num_classes": 3}


class Recording(nn.Module):
    """A mixer that changes nothing and keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, tokens, cond=None, *, order=None):
        self.calls.append((tokens, order))
        return tokens


def test_the_published_size_has_the_published_parameters_and_multiplications():
    """673 M parameters; 280.3 G multiplications for a latent of 32 x 32."""
    with torch.device("meta"):
        model = create_model("diffussm_xl")
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(1, 4, 32, 32), torch.rand(1), torch.zeros(1, dtype=torch.int64))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(673, rel=0.03)
    assert counter.get_total_flops() / 2e9 == pytest.approx(280.3, rel=0.03)


@pytest.mark.parametrize(("size", "millions"), [("s", 35), ("l", 259)])
def test_the_other_sizes(size, millions):
    with torch.device("meta"):
        model = create_model(f"diffussm_{size}")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("shorten", [1, 2, 4])
def test_a_block_is_its_equation(shorten):
    torch.manual_seed(0)
    block = DiffuSSMBlock(6, 3, shorten=shorten, mixer=S4DMixer(6, d_state=4), backward=S4DMixer(6, d_state=4)).double()
    x, cond = torch.randn(2, 3, 2, 6, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    shift, scale, gate = block.modulation.linear(F.silu(cond))[:, None, None].chunk(3, -1)
    n = F.layer_norm(x, (6,), eps=1e-6) * (1 + scale) + shift
    tokens = n.flatten(1, 2)

    def s(value):
        return F.gelu(value, approximate="tanh")

    rows = s(block.lift(tokens)) @ block.up.weight.T + block.up.bias
    u = torch.stack([s(rows[:, j])[:, 6 * k : 6 * k + 6] for j in range(6) for k in range(shorten)], 1)
    y = torch.cat([block.mixer(u), block.mixer_back(u.flip(1)).flip(1)], -1)
    v = torch.stack([
        torch.cat([s(block.down[k](y[:, shorten * j + k])) for k in range(shorten)], -1) for j in range(6)
    ], 1)  # fmt: skip
    update = block.proj(s(block.value(v)) * s(block.gate(tokens))).unflatten(1, (3, 2))
    assert relative_error(block(x, cond), x + gate * update) < 1e-12


def test_scans_walk_every_pixel_both_ways():
    forth, back = Recording(), Recording()

    def make_block(config, index):
        return DiffuSSMBlock(config.dim, config.dim, mixer=forth, backward=back)

    model = create_model("diffussm_s", make_block=make_block, **SMALL)
    model(torch.randn(2, 4, 8, 12), torch.rand(2))
    for recorded, order in ((forth, None), (back, list(range(95, -1, -1)))):
        tokens, walked = recorded.calls[0]
        assert tokens.shape == (2, 96, 16)
        assert (walked if walked is None else walked.tolist()) == order


def test_an_own_mixer_is_copied_for_the_way_back():
    block = DiffuSSMBlock(8, mixer=S4DMixer(8, d_state=2))
    assert block.mixer_back.d_state == 2
    assert block.mixer_back is not block.mixer
    assert torch.equal(block.mixer_back.C, block.mixer.C)
    other = DiffuSSMBlock(8)
    assert not torch.equal(other.mixer_back.C, other.mixer.C)
    with pytest.raises(ConfigError, match="backward: expected"):
        DiffuSSMBlock(8, backward=nn.Identity())


def test_the_network_reads_the_step_of_a_diffusion():
    model, reads = create_model("diffussm_s", **SMALL), []
    model.time_embed.register_forward_hook(lambda m, args, out: reads.append(args[0]))
    x = torch.randn(2, 4, 8, 8)
    assert model(x, torch.tensor([0.0, 1.0])).shape == x.shape
    assert torch.equal(reads[0], torch.tensor([999.0, 0.0]))


def test_a_fresh_model_returns_zero_and_its_positions_are_fixed():
    model = create_model("diffussm_s", **SMALL)
    assert not model(torch.randn(2, 4, 8, 8), torch.rand(2)).any()
    assert not model.pos_embed.requires_grad
    assert model.pos_embed.any()


def test_grids_that_do_not_fit_are_named():
    model = create_model("diffussm_s", **SMALL)
    with pytest.raises(ShapeError, match=r"x: expected sides that are multiples of the 1 x 2 pixels of a token"):
        model(torch.randn(2, 4, 8, 7), torch.rand(2))
    assert model(torch.randn(2, 4, 7, 8), torch.rand(2)).shape == (2, 4, 7, 8)
    with pytest.raises(ConfigError, match=r"img_size: expected \(h, w\), multiples of the \(1, 2\) pixels of a token"):
        create_model("diffussm_s", **{**SMALL, "img_size": (8, 9)})
    with pytest.raises(ConfigError, match="shorten: expected a divisor of 2 \\* dim = 32, got 3"):
        create_model("diffussm_s", **{**SMALL, "img_size": 9, "shorten": 3})
    with pytest.raises(ConfigError, match="d_state: expected an even number"):
        create_model("diffussm_s", **SMALL, d_state=5)
    with pytest.raises(ConfigError, match="scan"):
        create_model("diffussm_s", **SMALL, scan="no such order")
