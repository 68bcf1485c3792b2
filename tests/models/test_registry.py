"""What every registered model promises."""

import copy
import pickle
import re

import pytest
import timm
import torch
from support import relative_error
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch._subclasses import FakeTensorMode

import wavemamba
from wavemamba import ConfigError, DiMSUM, ShapeError, create_model, list_models
from wavemamba.models.inputs import check_inputs

SMALL = ["dimsum_tiny", "dimsum_s2"]
PARAMETERS = {  # the released counts, less the inert projections of the condition inside the mixers
    "dimsum_b2": 184_373_008,
    "dimsum_l2": 426_329_104,
    "dimsum_l4": 426_230_848,
    "dimsum_l2_d20": 525_956_112,
    "dimsum_l4_d20": 525_857_856,
    "dimsum_xl2": 791_074_960,
}


def build(name, **overrides):
    """A model with nothing left at zero, so that every path matters."""
    torch.manual_seed(0)
    model = create_model(name, **{"img_size": 8, "num_classes": 5, **overrides})
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def inputs(model, batch=2, size=None):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, model.config.in_chans, *(size or model.config.img_size))
    x = torch.randn(shape, generator=generator)
    t = torch.rand(batch, generator=generator)
    y = torch.randint(0, model.num_classes, (batch,), generator=generator) if model.num_classes else None
    return x, t, y


@pytest.mark.parametrize("name", list_models("dimsum_*"))
def test_every_model_on_the_meta_device(name):
    with torch.device("meta"):
        model = timm.create_model(name)
        x, t, y = torch.randn(2, 4, 32, 32), torch.rand(2), torch.zeros(2, dtype=torch.int64)
        out = model(x, t, y)
    assert out.shape == (2, 4, 32, 32)
    if name in PARAMETERS:
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_names_and_patterns():
    names = {"tiny", "s2", "b2", "l2", "l4", "l2_d20", "l4_d20", "xl2"}
    assert {f"dimsum_{name}" for name in names} <= set(list_models())
    assert list_models("dimsum_l4*") == ["dimsum_l4", "dimsum_l4_d20"]
    assert set(list_models("dimsum_*")) <= set(timm.list_models("dimsum_*"))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_receives_a_gradient(name):
    model = build(name).train()
    x, t, y = inputs(model, batch=3)
    y[0] = model.null_class
    out = model(x, t, y)
    assert out.shape == x.shape
    (out * torch.randn_like(out)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", SMALL)
def test_one_graph(name):
    model = build(name, depth=2, attention_every=2).eval()
    arguments = inputs(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(*arguments)
    out = compiled(*arguments)
    assert relative_error(out, expected) < 1e-5
    parameter = model.blocks[0].fusion.proj.weight
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), parameter)
    (gradient,) = torch.autograd.grad(out.square().sum(), parameter)
    assert relative_error(gradient, expected_gradient) < 1e-4


def test_one_graph_for_any_size():
    """A second size makes the graph dynamic, positions resampled and maps padded included."""
    model = build("dimsum_tiny", depth=1, attention_every=1, dim=32, fusion_heads=2, attention_heads=2).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in ((8, 8), (10, 14), (12, 6)):
        arguments = inputs(model, size=size)
        expected, out = model(*arguments), compiled(*arguments)
        assert relative_error(out, expected) < 1e-5
        gradient, expected_gradient = (
            torch.autograd.grad(y.square().sum(), model.pos_embed)[0] for y in (out, expected)
        )
        assert relative_error(gradient, expected_gradient) < 1e-4


@pytest.mark.slow
def test_one_graph_through_inductor():
    model = build("dimsum_tiny", depth=1, attention_every=1, dim=32, fusion_heads=2, attention_heads=2).eval()
    arguments = inputs(model)
    with torch.no_grad():
        assert relative_error(torch.compile(model, fullgraph=True)(*arguments), model(*arguments)) < 1e-5


@pytest.mark.parametrize("name", SMALL)
def test_save_and_load(name, tmp_path):
    model = build(name).eval()
    arguments = inputs(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert loaded.config == model.config
    assert torch.equal(loaded(*arguments), model(*arguments))


@pytest.mark.parametrize("name", SMALL)
def test_weight_decay_and_layer_groups(name):
    model = build(name)
    names = {n for n, _ in model.named_parameters()}
    exempt = model.no_weight_decay()
    assert exempt <= names
    assert {n for n in names if re.search(r"(^|\.)(A_log|D)$", n)} <= exempt
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse))
        layers = [{re.sub(r"(\.\d+)?\..*", r"\1", n) for n in group} for group in groups.values()]
        after = model.config.attention_every
        assert [layer for layer in layers if "attentions.0" in layer] == [layers[1 + after]] == [{"attentions.0"}]
        assert layers[0] == {"pos_embed", "patch_embed", "time_embed", "label_embed"}
        assert layers[-1] == {f"blocks.{len(model.blocks) - 1}", "head"}  # as in timm's own transformers
        assert len(layers) == len(model.blocks) + 2
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.8).param_groups
    assert sum(len(group["params"]) for group in groups) == len(names)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not any(id(p) in decayed for n, p in model.named_parameters() if n in exempt)


def test_gradient_checkpointing_changes_nothing():
    model = build("dimsum_tiny").train()
    arguments = inputs(model)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        model(*arguments).square().sum().backward()
        gradients.append(model.pos_embed.grad.clone())
    assert relative_error(gradients[1], gradients[0]) < 1e-6


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (2, 2), (14, 4)])
def test_any_image_size(size):
    model = build("dimsum_tiny").eval()
    assert model(*inputs(model, size=size)).shape[2:] == size


def test_input_size_classes_and_features():
    model = build("dimsum_tiny").eval()
    model.set_input_size((12, 16))
    assert model.pos_embed.shape == (1, 6, 8, 128)
    assert model.config.img_size == (12, 16)
    x, t, y = inputs(model)
    features = model.forward_features(x, t, y)
    assert features.shape == (2, 6, 8, 128)
    assert torch.equal(model.forward_head(features, model.embed_condition(t, y)), model(x, t, y))
    model.reset_classifier(3)
    assert (model.num_classes, model.null_class) == (3, 3)
    assert model.get_classifier().table.weight.shape == (4, 128)
    model.reset_classifier(0)
    assert model(x, t).shape == x.shape
    assert model.null_class is None


def test_a_fresh_table_of_classes_drops_labels_in_training_alone():
    model = build("dimsum_tiny", depth=1, class_dropout=0.9).eval()
    model.reset_classifier(7)
    _, t, y = inputs(model, batch=8)
    embedded = model.embed_condition(t, y) - model.time_embed(t)
    assert torch.allclose(embedded, model.label_embed.table(y), atol=1e-6)


def test_values_are_not_read_where_that_would_wait():
    """Out of range on the meta device, in a graph and on fake tensors: nothing raises, nothing is read."""
    model = build("dimsum_tiny", depth=1).eval()
    x, t, y = inputs(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert compiled(x, t + 5, y).shape == x.shape
    on_meta = [value.to("meta") for value in (x, t + 5, y + 99)]
    assert copy.deepcopy(model).to("meta")(*on_meta).shape == x.shape
    mode, late, many = FakeTensorMode(), t + 5, y + 99
    with mode:
        check_inputs(model.config, *(mode.from_tensor(value) for value in (x, late, many)))


def test_copies_in_other_dtypes():
    model = build("dimsum_tiny", depth=2).eval()
    x, t, y = inputs(model)
    expected = copy.deepcopy(model).double()(x.double(), t.double(), y)
    assert relative_error(pickle.loads(pickle.dumps(model))(x, t, y), expected) < 2e-6
    assert relative_error(model(x, t, y.int()), expected) < 2e-6
    for dtype, bound in ((torch.bfloat16, 3e-2), (torch.float16, 4e-3)):
        out = copy.deepcopy(model).to(dtype)(x.to(dtype), t, y)
        assert out.dtype == dtype
        assert relative_error(out, expected) < bound
        with torch.autocast("cpu", dtype):
            assert relative_error(model(x, t, y), expected) < bound


def test_unconditional_and_null_label():
    model = build("dimsum_tiny", num_classes=0).eval()
    x, t, _ = inputs(model)
    assert model(x, t).shape == x.shape
    model = build("dimsum_tiny").eval()
    assert torch.equal(model(x, t), model(x, t, torch.full((2,), model.null_class)))


def test_label_dropout_takes_the_null_class_at_its_rate():
    embed = build("dimsum_tiny", class_dropout=0.3).label_embed.train()
    rows = embed(*2 * (torch.zeros(4000, dtype=torch.int64),))
    rate = (rows == embed.table.weight[-1]).all(-1).float().mean()
    assert 0.25 < rate < 0.35
    assert not (embed.eval()(*2 * (torch.zeros(50, dtype=torch.int64),)) == embed.table.weight[-1]).all(-1).any()


def test_initialisation():
    torch.manual_seed(0)
    model = create_model("dimsum_tiny", img_size=8)
    x, t, y = inputs(model)
    assert torch.equal(model(x, t, y), torch.zeros_like(x))
    for block in model.blocks:
        assert not block.modulation.linear.weight.any()
        for mixer in (block.spatial.step.mixer, block.frequency.step.mixer):
            dt = torch.nn.functional.softplus(mixer.directions[0].dt_bias)
            assert 9e-4 < dt.min() < dt.max() < 0.11
            bound = 1 / (mixer.inner**0.5 * len(model.blocks) ** 0.5)  # Kaiming-uniform, a = sqrt(5)
            assert 0.9 * bound < mixer.out_proj.weight.abs().max() <= bound
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.bias is not None]
    assert all(not m.bias.any() for m in linears)
    for table in (model.label_embed.table, model.time_embed.mlp[0], model.time_embed.mlp[2]):
        assert 0.018 < table.weight.std() < 0.022
    fan = 16 + 128  # of a Linear from the 2 x 2 x 4 values of a patch
    assert 0.95 < model.patch_embed.proj.weight.abs().max() / (6 / fan) ** 0.5 <= 1
    assert not model.patch_embed.proj.bias.any()
    column, row = model.pos_embed[0, 2, 3].detach().split(64)
    assert column[0] == pytest.approx(torch.tensor(3.0).sin().item(), abs=1e-6)
    assert row[32] == pytest.approx(torch.tensor(2.0).cos().item(), abs=1e-6)


def test_options_reach_the_model():
    model = build(
        "dimsum_tiny", levels=1, layout="mosaic", scan_path="jpeg", snake=True, bidirectional=True, mlp="plain",
        conditioning="conv_state", attention_sharing="independent", attention_every=1, final_norm=True, norm="layer",
        transform="db2", fusion="swap_k", out_chans=8, in_chans=3, patch_size=1, mlp_ratio=2, d_state=4,
    ).train()  # fmt: skip
    x, t, y = inputs(model)
    out = model(x, t, y)
    assert out.shape == (2, 8, 8, 8)
    (out * torch.randn_like(out)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: create_model("dimsum_l3"), ConfigError, "dimsum_l2"),
        (lambda: create_model("dimsum_tiny", img_sise=8), ConfigError, "did you mean img_size"),
        (lambda: timm.create_model("dimsum_tiny", nmu_classes=8), ConfigError, "num_classes"),
        (lambda: create_model("dimsum_tiny", img_size=7), ConfigError, "multiples of patch_size"),
        (lambda: create_model("dimsum_tiny", depth=0), ConfigError, "depth"),
        (lambda: create_model("dimsum_tiny", class_dropout=1.0), ConfigError, "class_dropout"),
        (lambda: create_model("dimsum_tiny", layout="tiles"), ConfigError, "mosaic"),
        (lambda: create_model("dimsum_tiny", dim=130), ConfigError, "multiple of 4"),
        (lambda: create_model("dimsum_tiny", img_size=None), ConfigError, "img_size"),
        (lambda: create_model("dimsum_tiny", img_size=8.5), ConfigError, "img_size"),
        (lambda: create_model("dimsum_tiny", final_norm="no"), ConfigError, "final_norm: expected True or False"),
        (lambda: create_model("dimsum_tiny", mlp_ratio=float("inf")), ConfigError, "mlp_ratio"),
        (lambda: create_model("dimsum_tiny", mlp_ratio=1e-9), ConfigError, "mlp_ratio"),
        (lambda: create_model("dimsum_tiny", fusion_heads=7), ConfigError, "fusion_heads: expected a divisor"),
        (lambda: create_model("dimsum_tiny", attention_heads=7), ConfigError, "attention_heads: expected a divisor"),
        (lambda: create_model("DiMSUM_L2"), ConfigError, "did you mean dimsum_l2"),
        (
            lambda: create_model("sit_s2", scan="hilbert"),
            ConfigError,
            r"scan: expected an option of dit \(class_dropout, .*\), got one of diffussm, zigma;",
        ),
        (lambda: create_model("dimsum_tiny", num_heads=4), ConfigError, "num_heads: .*got one of dit;"),
        (lambda: create_model("zigma_s2", num_head=4), ConfigError, "unknown option 'num_head'; did you mean"),
        (lambda: timm.create_model("diffussm_s", fusion="swap_k"), ConfigError, "fusion: .*got one of dimsum;"),
        (lambda: create_model("dimsum_tiny", pretrained=True), wavemamba.CheckpointError, "dimsum_l2"),
    ],
)
def test_bad_options_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 3, 8, 8)}, r"x: expected \(B, in_chans, h, w\)"),
        ({"x": torch.randn(2, 4, 8)}, "x"),
        ({"x": torch.randn(2, 4, 8, 7)}, "multiples of the patch size"),
        ({"x": torch.randn(2, 4, 0, 8)}, "multiples"),
        ({"x": [1.0]}, "x: expected a tensor, got list"),
        ({"x": torch.ones(2, 4, 8, 8).to(torch.float8_e4m3fn)}, "float"),
        ({"x": torch.ones(2, 4, 8, 8, dtype=torch.int64)}, "float"),
        ({"x": torch.randn(2, 4, 8, 8).numpy()}, "x: expected a tensor, got ndarray"),
        ({"t": 0.5}, "t: expected a tensor, got float"),
        ({"t": torch.tensor([0, 1])}, "floating"),
        ({"t": torch.rand(2, 1)}, "t: expected"),
        ({"t": torch.rand(3)}, "t: expected"),
        ({"t": torch.tensor([0.5, 1.5])}, r"times in \[0, 1\]"),
        ({"t": torch.tensor([0.5, float("nan")])}, r"times in \[0, 1\]"),
        ({"y": torch.tensor([0, 6])}, "class ids from 0 to 5"),
        ({"y": torch.tensor([-1, 0])}, "class ids"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "y: expected"),
        ({"y": torch.zeros(2)}, "int64"),
        ({"y": torch.zeros(2, dtype=torch.uint8)}, r"\.long"),
        ({"y": [0, 1]}, "y: expected a tensor, got list"),
    ],
)
def test_bad_input_is_named(change, message):
    model = build("dimsum_tiny", depth=1)
    x, t, y = inputs(model)
    with pytest.raises(ShapeError, match=message):
        model(**{"x": x, "t": t, "y": y, **change})


def test_label_for_an_unconditional_model_raises():
    model = build("dimsum_tiny", depth=1, num_classes=0)
    with pytest.raises(ShapeError, match="unconditional"):
        model(torch.randn(1, 4, 8, 8), torch.rand(1), torch.zeros(1, dtype=torch.int64))


def test_fits_the_public_name():
    assert isinstance(build("dimsum_tiny", depth=1), DiMSUM)
