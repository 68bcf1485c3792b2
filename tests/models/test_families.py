"""A family of a user's own: registered, listed, built, saved and loaded like those of the package."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import wavemamba
from wavemamba import CheckpointError, ConfigError, create_model, list_models, register_model
from wavemamba.models import DiffusionConfig, DiffusionModel, Model, ModelConfig, TrainedFor, load_pretrained


@dataclass(frozen=True, kw_only=True)
class ConvConfig(DiffusionConfig):
    """Options of `Conv`."""

    width: int = 8


@register_model(entry_points={"twoconv_small": {}, "twoconv_wide": {"width": 16}})
class Conv(DiffusionModel):
    """Two convolutions."""

    family = "twoconv"
    config_class = ConvConfig

    def __init__(self, config):
        super().__init__(config)
        self.blocks = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1)
            for a, b in ((config.in_chans, config.width), (config.width, config.output_channels))
        )
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)

    def forward(self, x, t, y=None):
        for block in self.blocks:
            x = block(x) * self.scale
        return x


@register_model
def twoconv_function(**overrides):
    """A function."""
    return Conv(ConvConfig(**{"width": 4, **overrides}))


def test_it_is_known_everywhere(tmp_path):
    assert list_models("twoconv*") == ["twoconv_function", "twoconv_small", "twoconv_wide"]
    model = create_model("twoconv_wide", num_classes=0, in_chans=3, img_size=(4, 6)).eval()
    assert model.blocks[0].out_channels == 16
    assert (model.in_chans, model.out_chans, model.img_size, model.time_range) == (3, 3, (4, 6), (0.0, 1.0))
    assert (model.num_classes, model.null_class, model.condition.kind) == (0, None, "none")
    model.trained_for = TrainedFor({"path": "gvp"}, None, ("a",))
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert isinstance(loaded, Conv)
    assert loaded.trained_for == model.trained_for
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(loaded(x, torch.rand(2)), model(x, torch.rand(2)))
    assert create_model("twoconv_function", width=5).blocks[0].out_channels == 5
    with pytest.raises(CheckpointError, match="load_pretrained takes every family"):
        wavemamba.DiMSUM.from_pretrained(tmp_path)


def test_the_contract_of_any_diffusion_model():
    model = create_model("twoconv_small", in_chans=1)
    maps = model.forward_intermediates(torch.randn(2, 1, 4, 4), torch.rand(2), indices=[0], output_fmt="NHWC")
    assert len(maps) == 1
    assert (model.condition.kind, model.condition.num_classes, model.condition.null_class) == ("class", 1000, 1000)
    model.set_grad_checkpointing(False)
    for refused in (
        lambda: model.set_grad_checkpointing(),
        lambda: model.reset_classifier(3),
        lambda: model.set_input_size(8),
        lambda: create_model("twoconv_small", widht=3),
    ):
        with pytest.raises(ConfigError):
            refused()
    with pytest.raises(TypeError, match="forward"):
        type("NoForward", (DiffusionModel,), {"family": "no_forward"})(DiffusionConfig())


def test_registering_again_replaces_and_taken_names_are_refused():
    register_model(Conv, entry_points={"twoconv_small": {}, "twoconv_wide": {"width": 16}})
    register_model(twoconv_function)
    other = type("Other", (Conv,), {"family": "twoconv"})
    third = type("Third", (Conv,), {"family": "third"})
    for thing, names, message in (
        (other, None, "'twoconv'"),
        (type("Thief", (Conv,), {"family": "dimsum"}), None, "'dimsum'"),
        (third, {"dimsum_l2": {}}, "'dimsum_l2'"),
        (third, {"twoconv_function": {}}, "'twoconv_function'"),
        (third, {"third": {"widht": 3}}, "did you mean width"),
        (type("Nameless", (Model,), {}), None, "name its family"),
        (lambda: None, None, "a function with a name"),
        (3, None, "expected a subclass"),
        (nn.Linear, None, "expected a subclass"),
    ):
        with pytest.raises(ConfigError, match=message):
            register_model(thing, entry_points=names)
    assert "third" not in list_models()
    assert create_model("twoconv_wide").config.width == 16


def test_a_function_must_return_a_model():
    @register_model
    def returns_a_layer(**overrides):
        return nn.Linear(1, 1)

    with pytest.raises(ConfigError, match="expected its function to return"):
        create_model("returns_a_layer")


def test_another_process_is_told_to_register_the_family(tmp_path):
    create_model("twoconv_small").save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"twoconv"', '"convolution"')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"got 'convolution'.*register_model"):
        load_pretrained(tmp_path)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(ModelConfig):
    """Options of `Backbone`."""

    classes: int = 10


class Backbone(Model):
    """No diffusion model at all."""

    family = "pooling_backbone"
    config_class = BackboneConfig

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(3, config.classes)

    def forward(self, image):
        return self.head(image.mean((2, 3)))


def test_a_family_of_another_kind(tmp_path):
    register_model(Backbone)
    model = create_model("pooling_backbone", classes=4).eval()
    model.save_pretrained(tmp_path)
    image = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_pretrained(tmp_path)(image), model(image))
    assert load_pretrained(tmp_path).config.classes == 4
