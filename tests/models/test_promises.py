"""What every family of models promises, small."""

import re
from pathlib import Path

import pytest
import timm
import torch
from accelerate import cpu_offload
from model_zoo import CASES, build, inputs
from support import relative_error
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from wavemamba import ConfigError, create_model, list_models, models
from wavemamba.layers import MambaMixer
from wavemamba.models import load_pretrained


def test_every_family_is_here():
    rooms = {path.parent.name for path in Path(models.__file__).parent.glob("*/entry_points.py")}
    assert {build(case).family for case in CASES} == rooms


@pytest.mark.parametrize("name", list_models())
def test_every_name_on_the_meta_device(name):
    with torch.device("meta"):
        model = create_model(name)
        x, t, y = torch.randn(1, 4, 32, 32), torch.rand(1), torch.zeros(1, dtype=torch.int64)
        assert model(x, t, y).shape == (1, model.out_chans, 32, 32)
    assert (model.num_classes, model.img_size, model.in_chans) == (1000, (32, 32), 4)
    assert model.null_class == (1000 if model.config.class_dropout else None)


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_receives_a_gradient(case):
    model = build(case).train()
    x, t, y = inputs(model, batch=4)
    if model.null_class is not None:
        y[0] = model.null_class
    out = model(x, t, y)
    assert out.shape == (4, model.out_chans, 8, 8)
    (out * torch.randn_like(out)).sum().backward()
    unused = {"head.bias"} if model.out_chans != model.config.head_parts * model.in_chans else set()
    missing = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert missing <= unused


@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch_gives_an_empty_result(case):
    model = build(case)
    x, t, y = (value[:0].requires_grad_(value.is_floating_point()) for value in inputs(model))
    out = model(x, t, y)
    assert out.shape == (0, model.out_chans, 8, 8)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("case", CASES)
def test_blocks_that_cannot_be_called_as_such_are_named(case):
    name, options = CASES[case]
    for make in (lambda config, spec: torch.nn.Identity(), lambda config, spec: torch.nn.Linear):
        with pytest.raises(ConfigError, match=r"block: expected a module called as block\(x, cond"):
            create_model(name, **{"img_size": 8, "depth": 1, "dim": 32, **options, "make_block": make})


@pytest.mark.parametrize("case", CASES)
def test_weights_that_are_offloaded_give_the_same_numbers(case):
    """No weight is read past the `forward` of the module that holds it."""
    model = build(case).eval()
    arguments = inputs(model)
    with torch.no_grad():
        expected = model(*arguments)
        away = cpu_offload(model, execution_device=torch.device("cpu"))
        assert all(p.is_meta for p in away.parameters())
        assert torch.equal(away(*arguments), expected)


@pytest.mark.parametrize("case", CASES)
def test_global_defaults_change_nothing(case):
    model = build(case).train()
    arguments = inputs(model)

    def run():
        torch.manual_seed(0)
        out = model(*arguments)
        return out, *torch.autograd.grad(out.square().sum(), [p for p in model.parameters() if p.requires_grad],
                                         allow_unused=True)  # fmt: skip

    expected, before = run(), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            found = run()
    finally:
        torch.set_default_dtype(before)
    for value, other in zip(found, expected, strict=True):
        assert (value is None) == (other is None)
        assert value is None or relative_error(value, other) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_flops_are_those_of_the_scans_too(case):
    model = build(case).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs(model))
    counted = counter.get_flop_counts()["Global"]
    scans = sum(isinstance(module, MambaMixer) for module in model.modules())
    assert (torch.ops.wavemamba.selective_scan in counted) == (scans > 0)
    assert all(counted.values())


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_every_sample(case):
    """By `vmap` of `grad`, as differentially private training takes them."""
    model = build(case).eval()
    arguments = inputs(model)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, *one):
        return functional_call(model, parameters, tuple(value[None] for value in one)).square().sum()

    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))(parameters, *arguments)
    for row in range(2):
        expected = torch.func.grad(loss)(parameters, *(value[row] for value in arguments))
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name][row], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_one_graph(case):
    model = build(case).eval()
    arguments = inputs(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, out = model(*arguments), compiled(*arguments)
    assert relative_error(out, expected) < 1e-5
    parameter = model.patch_embed.proj.weight
    gradient, expected_gradient = (torch.autograd.grad(y.square().sum(), parameter)[0] for y in (out, expected))
    assert relative_error(gradient, expected_gradient) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_recomputing_blocks_changes_nothing(case):
    model = build(case).train()
    arguments = inputs(model)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        model(*arguments).square().sum().backward()
        gradients.append(model.patch_embed.proj.weight.grad.clone())
    assert relative_error(gradients[1], gradients[0]) < 1e-6


@pytest.mark.parametrize("size", [(12, 4), (4, 16)])
@pytest.mark.parametrize("case", CASES)
def test_any_grid(case, size):
    model = build(case).eval()
    assert model(*inputs(model, size=size)).shape[2:] == size


@pytest.mark.parametrize("case", CASES)
def test_save_and_load(case, tmp_path):
    model = build(case).eval()
    arguments = inputs(model)
    model.save_pretrained(tmp_path)
    for loaded in (load_pretrained(tmp_path), type(model).from_pretrained(tmp_path)):
        assert type(loaded) is type(model)
        assert loaded.config == model.config
        assert torch.equal(loaded(*arguments), model(*arguments))
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("case", CASES)
def test_fine_tuning_on_another_size_and_other_classes(case, tmp_path):
    model = build(case).eval()
    model.save_pretrained(tmp_path)
    name, options = CASES[case]
    asked = {"img_size": (8, 16), "in_chans": 3} | ({"num_classes": 4} if model.num_classes else {})
    with pytest.warns(UserWarning, match="weights adapted to the model: "):
        tuned = create_model(name, checkpoint_path=tmp_path, **{"depth": 2, "dim": 32, **options, **asked})
    assert tuned(*inputs(tuned, size=(8, 16))).shape == (2, tuned.out_chans, 8, 16)
    kept = dict(model.blocks.named_parameters())
    assert all(torch.equal(value, kept[name]) for name, value in tuned.blocks.named_parameters())


@pytest.mark.parametrize("case", CASES)
def test_timm_builds_it_too(case):
    name, options = CASES[case]
    options = {"img_size": 8, "num_classes": 5, "depth": 2, "dim": 32, **options}
    model = timm.create_model(name, **options)
    assert model.config == create_model(name, **options).config
    assert model.get_submodule(model.default_cfg["first_conv"]) is model.patch_embed.proj
    if model.num_classes:
        assert model.get_submodule(model.default_cfg["classifier"]) is model.label_embed.table


@pytest.mark.parametrize("case", CASES)
def test_features_of_every_block(case):
    model = build(case).eval()
    arguments = inputs(model)
    maps = model.forward_intermediates(*arguments)
    assert [tuple(x.shape[:2]) for x in maps] == [(2, 32)] * 2
    (last,) = model.forward_intermediates(*arguments, indices=[-1], output_fmt="NHWC")
    assert torch.equal(last, maps[1].permute(0, 2, 3, 1))
    features = model.forward_features(*arguments)
    cond = model.embed_condition(*arguments[1:])
    assert torch.equal(model.forward_head(features, cond), model(*arguments))


@pytest.mark.parametrize("case", CASES)
def test_weight_decay_and_layer_groups(case):
    model = build(case)
    names = {n for n, _ in model.named_parameters()}
    exempt = model.no_weight_decay()
    assert exempt <= names
    assert {n for n in names if re.search(r"(^|\.)(A_log|D)$", n)} <= exempt
    groups = group_parameters(model, model.group_matcher())
    assert {n for group in groups.values() for n in group} == names
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.8).param_groups
    assert sum(len(group["params"]) for group in groups) == len(trained)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not any(id(p) in decayed for n, p in model.named_parameters() if n in exempt)


@pytest.mark.parametrize("case", CASES)
def test_meta_then_values(case):
    """Built without values, then given some: the same as built at once."""
    name, options = CASES[case]
    options = {"img_size": 8, "num_classes": 5, "depth": 2, "dim": 32, **options}
    torch.manual_seed(3)
    expected = create_model(name, **options).state_dict()
    with torch.device("meta"):
        model = create_model(name, **options)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(3)
    model.reset_parameters()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("case", CASES)
def test_16_bit_copies(case):
    model = build(case).eval()
    arguments = inputs(model)
    expected = model(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(model(*arguments), expected) < 3e-2
    half = model.to(torch.bfloat16)
    y = arguments[2].bfloat16() if arguments[2].is_floating_point() else arguments[2]
    assert relative_error(half(arguments[0].bfloat16(), arguments[1], y), expected) < 4e-2
