"""The mixers of the library as an option of a model."""

import pytest
import torch
from support import relative_error

from wavemamba import ConfigError, create_model
from wavemamba.models import load_pretrained

MIXERS = ("mamba1", "mamba2", "gla", "attention")
MILLIONS = {"mamba1": 46.70, "mamba2": 46.20, "gla": 44.00, "attention": 44.20}


def tiny(mixer, **options):
    torch.manual_seed(0)
    sizes = {"img_size": 8, "num_classes": 3, "depth": 2, "dim": 32, "attention_every": 2, "fusion_heads": 2}
    return create_model("dimsum_s2", mixer=mixer, **{**sizes, "attention_heads": 2, **options})


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_small_model(mixer):
    with torch.device("meta"):
        model = create_model("dimsum_s2", mixer=mixer)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[mixer], abs=0.01)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"conditioning": "conv_state"}])
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_model_trains_saves_and_loads(mixer, options, tmp_path):
    if (mixer == "attention" and options) or (mixer == "gla" and "conditioning" in options):
        with pytest.raises(ConfigError, match=next(iter(options))):
            tiny(mixer, **options)
        return
    model = tiny(mixer, class_dropout=0.0, **options)
    x, t, y = torch.randn(8, 4, 8, 8), torch.rand(8), torch.randint(0, 3, (8,))
    target, losses = torch.randn(3, 4, 8, 8)[y], []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(12):
        loss = (model(x, t, y) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    expected = model.eval()(x, t, y)
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(x, t, y), expected)


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_scan_order_reaches_the_mixer(mixer):
    x, t, y = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 1])
    maps = []
    for scan in ("raster", "hilbert"):
        model = tiny(mixer, spatial_scan=scan).eval()
        for parameter in model.parameters():
            if not parameter.any():  # a new model's blocks add nothing
                torch.nn.init.normal_(parameter)
        maps.append(model.forward_intermediates(x, t, y, indices=[0])[0])
    assert relative_error(*maps) > 1e-5


@pytest.mark.parametrize("mixer", MIXERS)
def test_d_state_is_the_mixers(mixer):
    if mixer == "attention":
        with pytest.raises(ConfigError, match=r"d_state: expected 16 with mixer='attention', .* got 8; leave it out"):
            tiny(mixer, d_state=8)
        return
    assert tiny(mixer, d_state=8).blocks[0].spatial.step.mixer.d_state == 8


def test_the_released_start_of_the_output_projections_holds_for_every_mixer():
    for mixer in MIXERS:
        shallow, deep = (tiny(mixer, depth=depth, attention_every=0) for depth in (1, 16))
        bounds = [m.blocks[0].spatial.step.mixer.out_proj.weight.abs().max().item() for m in (shallow, deep)]
        assert bounds[0] / bounds[1] == pytest.approx(4, rel=0.1)
