"""Weights of another size are adapted where the caller asked for that size, never silently, and refused elsewhere."""

import pytest
import torch
from support import relative_error
from torch import nn

from wavemamba import CheckpointError, create_model
from wavemamba.models import TrainedFor
from wavemamba.models.loading import load_into

BASE = {"img_size": 8, "depth": 1, "dim": 32, "num_classes": 5}


def filled(**options):
    torch.manual_seed(0)
    model = create_model("dimsum_tiny", **{**BASE, **options}).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    model.trained_for = TrainedFor({"path": "gvp"}, "a/vae", ("a", "b", "c", "d", "e")[: model.num_classes])
    return model


@pytest.fixture(params=["folder", "file", "pt"])
def source(request, tmp_path):
    def save(model):
        if request.param == "pt":
            torch.save(model.state_dict(), tmp_path / "model.pt")
            return tmp_path / "model.pt"
        model.save_pretrained(tmp_path)
        return tmp_path if request.param == "folder" else tmp_path / "model.safetensors"

    return save


def tuned(path, note, **options):
    with pytest.warns(UserWarning, match=f"weights adapted to the model: .*{note}"):
        model = create_model("dimsum_tiny", checkpoint_path=path, **{**BASE, **options})
    assert not model.training
    assert any(note in line for line in model.adapted)
    return model


def test_what_fits_is_loaded_as_it_is(source, recwarn):
    old = filled()
    model = create_model("dimsum_tiny", checkpoint_path=source(old), **BASE)
    assert model.adapted == ()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in old.state_dict().items())
    assert not [w for w in recwarn if "adapted" in str(w.message)]


def test_other_classes_keep_the_null_class(source):
    old = filled()
    model = tuned(source(old), "9 fresh classes in place of 5, the null class kept", num_classes=9)
    assert model.label_embed.table.weight.shape == (10, 32)
    assert torch.equal(model.label_embed.table.weight[9], old.label_embed.table.weight[5])
    x, t = torch.randn(2, 4, 8, 8), torch.rand(2)
    assert torch.equal(model(x, t), old(x, t))


def test_no_classes_keeps_what_the_null_class_said(source):
    old = filled()
    model = tuned(source(old), "its last row added", num_classes=0)
    x, t = torch.randn(2, 4, 8, 8), torch.rand(2)
    assert relative_error(model(x, t), old(x, t)) < 1e-5


def test_classes_for_an_unconditional_model(source):
    old = filled(num_classes=0)
    model = tuned(source(old), "label table: 3 fresh classes", num_classes=3)
    assert model(torch.randn(1, 4, 8, 8), torch.rand(1), torch.tensor([2])).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("before", "after", "note"), [(0.1, 0.0, "null class dropped"), (0.0, 0.1, "null class added")]
)
def test_a_null_class_more_or_less(source, before, after, note):
    old = filled(class_dropout=before)
    model = tuned(source(old), note, class_dropout=after)
    assert torch.equal(model.label_embed.table.weight[:5], old.label_embed.table.weight[:5])


def test_positions_are_resampled(source):
    old = filled()
    model = tuned(source(old), "positions: 4 x 4 resampled to 6 x 8", img_size=(12, 16))
    old.set_input_size((12, 16))
    assert torch.equal(model.pos_embed, old.pos_embed)
    x, t = torch.randn(2, 4, 12, 16), torch.rand(2)
    assert torch.equal(model(x, t), old(x, t))


def test_channels_are_repeated(source):
    old = filled(in_chans=2)
    model = tuned(source(old), "patch layer: 2 channels repeated to 4", in_chans=4)
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    assert relative_error(model(x.repeat(1, 2, 1, 1), t), old(x, t).repeat(1, 2, 1, 1)) < 1e-5
    assert any("output layer" in note for note in model.adapted)


def test_channels_are_summed(source):
    old = filled(in_chans=3)
    model = tuned(source(old), "patch layer: 3 channels summed to 1", in_chans=1, out_chans=3)
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    assert relative_error(model(x, t), old(x.expand(-1, 3, -1, -1), t)) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 16}, "wrong shape: pos_embed"),
        ({"in_chans": 3}, "wrong shape: patch_embed"),
        ({"num_classes": 7}, "wrong shape: label_embed"),
        ({"dim": 64}, "wrong shape"),
    ],
)
def test_what_was_not_asked_for_is_refused(options, message, tmp_path):
    torch.save(filled(**options).state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        load_into(create_model("dimsum_tiny", **BASE), tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"dim": 64}, {"num_classes": 7}),
        ({"dim": 64}, {"num_classes": 0}),
        ({"dim": 64}, {"img_size": 16}),
        ({"dim": 64}, {"in_chans": 1}),
        ({"patch_size": 1, "in_chans": 3}, {"in_chans": 5}),
    ],
)
def test_another_width_beside_what_was_asked_for_is_refused(options, asked, tmp_path):
    torch.save(filled(**options).state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="wrong shape"):
        create_model("dimsum_tiny", checkpoint_path=tmp_path / "model.pt", **BASE | asked)


@pytest.mark.parametrize("options", [{"layout": "mosaic"}, {"scan_path": "jpeg"}, {"snake": True}])
def test_weights_that_mean_something_else_are_refused(options, tmp_path):
    filled(**options).save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(CheckpointError, match=f"{next(iter(options))}="):
            create_model("dimsum_tiny", checkpoint_path=path, **BASE)
        create_model("dimsum_tiny", checkpoint_path=path, **BASE, **options)


def test_what_it_was_trained_for_comes_along(tmp_path):
    old = filled()
    old.save_pretrained(tmp_path)
    same = create_model("dimsum_tiny", checkpoint_path=tmp_path, **BASE, drop_path_rate=0.2)
    assert same.trained_for == old.trained_for
    other = tuned(tmp_path, "fresh classes", num_classes=9)
    assert other.trained_for.objective == {"path": "gvp"}
    assert other.trained_for.class_names == ()
