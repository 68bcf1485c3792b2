"""A model whose cost is linear in the tokens, made for one size, on two and four times the side."""

import pytest
import torch
from torch import nn

from wavemamba import ConfigError, Sampler, create_model
from wavemamba.diffusion import Objective
from wavemamba.layers import attend
from wavemamba.models import load_pretrained

NAMES = ("dimsum_s2_window", "dimsum_s2_linear")


def build(name, **options):
    """A model with nothing left at zero, so that every path matters."""
    torch.manual_seed(0)
    small = {"img_size": 16, "num_classes": 3, "dim": 32, "depth": 4, "fusion_heads": 2, "attention_heads": 2}
    model = create_model(name, **{**small, **options}).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model


def test_the_shift_of_the_windows_goes_by_turns():
    model = build("dimsum_s2_window", attention_window=6)
    assert [block.fusion.attend.shifts for block in model.blocks] == [(0,), (3,), (0,), (3,)]
    assert model.attentions[0].attention.attend.shifts == (0, 3)


def test_a_window_without_windows_is_refused():
    with pytest.raises(ConfigError, match="attention_window: expected 8 with fusion='cross' and attention='transf"):
        build("dimsum_s2", attention_window=4)
    with pytest.raises(ConfigError, match="attention_window"):
        build("dimsum_s2_window", attention_window=0)
    assert build("dimsum_s2", attention="window", attention_window=4).config.fusion == "cross"


@pytest.mark.parametrize("name", NAMES)
def test_attention_alone_carries_a_token_over_many_windows(name):
    model = build(name, attention_window=4) if name.endswith("window") else build(name)
    for block in model.blocks:
        for branch in (block.spatial, block.frequency):
            nn.init.zeros_(branch.step.mixer.out_proj.weight)
    x = torch.randn(1, 4, 32, 32, requires_grad=True)
    y = model(x, torch.tensor([0.5]), torch.tensor([1]))
    (gradient,) = torch.autograd.grad(y[0, :, 16:18, 16:18].square().sum(), x)
    reached = (gradient.abs().sum(dim=1)[0] > 0).unflatten(1, (16, 2)).unflatten(0, (16, 2))[:, 0, :, 0]
    assert reached[5:12, 5:12].all()  # tokens of five windows on either axis
    assert reached.all() == (name == "dimsum_s2_linear")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_draws_at_two_and_four_times_the_side(name, tmp_path):
    build(name, in_chans=3).save_pretrained(tmp_path)
    sampler = Sampler(load_pretrained(tmp_path), objective=Objective("gvp"))
    for side in (16, 32, 64):
        images = sampler(classes=[2], seeds=[0], size=side, solver="euler", steps=2).images
        assert images.shape == (1, 3, side, side)
        assert images.std() > 0


class HardWindows(nn.Module):
    """Every token attends to all of its window of 8 x 8."""

    def forward(self, q, k, v, num_heads, grid):
        height, width = grid
        cut = (
            t.unflatten(1, (height // 8, 8, width // 8, 8)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
            for t in (q, k, v)
        )
        y = attend(*cut, num_heads).unflatten(1, (8, 8)).unflatten(0, (q.shape[0], height // 8, width // 8))
        return y.transpose(2, 3).flatten(1, 4)


def seams(model, side):
    """Differences of neighbouring tokens at the cuts between windows against those elsewhere, for a smooth image."""
    rows, columns = torch.linspace(0, 1, side)[:, None], torch.linspace(0, 1, side)
    image = torch.stack([(2 * rows + columns).cos(), (3 * columns + rows).sin(), rows * columns, rows - columns])
    with torch.no_grad():
        tokens = model.forward_features(image[None], torch.tensor([0.5]), torch.tensor([1]))
    ratios = []
    for axis in (1, 2):
        difference = tokens.diff(dim=axis).norm(dim=-1).mean(dim=(0, 3 - axis))
        cut = torch.arange(1, len(difference) + 1) % 4 == 0  # 8 tokens a window, and half of it with a shift
        ratios.append(float(difference[cut].mean() / difference[~cut].mean()))
    return max(ratios)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_tiles_do_not_show(side):
    """At the cuts as between any other tokens; the transform's cells, in a model of full attention too, lie there."""
    without = seams(build("dimsum_s2"), side)
    assert seams(build("dimsum_s2_linear"), side) < 1.02 * without
    assert seams(build("dimsum_s2_window"), side) < 1.02 * without
    hard = build("dimsum_s2_window")
    for block in hard.blocks:
        block.fusion.attend = HardWindows()
    assert seams(hard, side) > 1.2 * without
