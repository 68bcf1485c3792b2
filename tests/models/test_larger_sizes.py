"""A model of linear cost, made for one size, on two and four times the side."""

import pytest
import torch

from wavemamba import create_model

NAMES = ("dimsum_s2_window", "dimsum_s2_linear")
SMALL = {"img_size": 16, "num_classes": 3, "dim": 32, "depth": 4, "fusion_heads": 2, "attention_heads": 2}


def build(name, **options):
    """A model with nothing left at zero, so that every path matters."""
    torch.manual_seed(0)
    model = create_model(name, **{**SMALL, **options}).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_the_shift_of_the_windows_goes_by_turns():
    model = build("dimsum_s2_window", attention_window=6)
    assert [block.fusion.attend.shifts for block in model.blocks] == [(0,), (3,), (0,), (3,)]
    assert model.attentions[0].attention.attend.shifts == (0, 3)


@pytest.mark.parametrize("name", NAMES)
def test_what_one_token_changes_reaches_all_others(name):
    """Through the attention alone: mixers that would carry it further are left out."""
    model = build(name, attention_window=4, attention_every=2)
    for block in model.blocks:
        for branch in (block.spatial, block.frequency):
            torch.nn.init.zeros_(branch.step.mixer.out_proj.weight)
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    y = model(x, torch.tensor([0.5]), torch.tensor([1]))
    (gradient,) = torch.autograd.grad(y[0, :, 0, 0].square().sum(), x)
    assert (gradient.abs().sum(dim=1) > 0).all()
