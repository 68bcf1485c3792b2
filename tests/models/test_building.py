"""A model is initialised by `reset_parameters` alone, wherever it was built; its parts are replaced from outside."""

import contextlib
import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from wavemamba import CheckpointError, ConfigError, DiMSUM, DiMSUMBlock, create_model, list_models
from wavemamba.models import load_pretrained, make_block, part_registry, register_part
from wavemamba.models.part_registry import PART_KINDS, find_part, part_names, users_parts
from wavemamba.registry import Registry
from wavemamba.scans import list_scan_orders, register_scan_order, scan_order

EVERYTHING = {
    "conditioning": "conv_state",
    "bidirectional": True,
    "final_norm": True,
    "attention_sharing": "independent",
    "attention_every": 1,
    "norm": "layer",
}


TINY = {"img_size": 8, "depth": 2, "dim": 32, "num_classes": 3}


def tiny(**options):
    return create_model("dimsum_tiny", **{**TINY, **options})


@pytest.fixture(params=[{}, EVERYTHING], ids=["default", "everything"])
def options(request):
    return request.param


def test_built_on_meta_it_is_initialised_like_a_fresh_one(options):
    torch.manual_seed(3)
    fresh = tiny(**options)
    with torch.device("meta"):
        model = tiny(**options)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan"))
    torch.manual_seed(3)
    model.reset_parameters()
    assert fresh.state_dict().keys() == model.state_dict().keys()
    assert [n for n, value in fresh.state_dict().items() if not torch.equal(value, model.state_dict()[n])] == []
    assert len(list(model.buffers())) == len(list(fresh.buffers()))


def test_building_draws_nothing_but_initialising(options):
    torch.manual_seed(3)
    tiny(**options)
    after = torch.rand(1)
    model = tiny(**options)
    torch.manual_seed(3)
    model.reset_parameters()
    assert torch.equal(torch.rand(1), after)


def test_a_part_that_cannot_be_initialised_is_named():
    class Bare(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.scale = nn.Parameter(torch.full((dim,), 0.5))

        def forward(self, x, cond=None, residual=None):
            return x * self.scale, x

    with torch.device("meta"):
        model = tiny(make_block=lambda config, spec: Bare(config.dim))
    model.to_empty(device="cpu")
    with pytest.raises(ConfigError, match=r"blocks\.1: expected a module with reset_parameters.*Bare"):
        model.reset_parameters()
    fresh = tiny(make_block=lambda config, spec: Bare(config.dim))
    fresh.reset_parameters()
    assert torch.equal(fresh.blocks[0].scale, torch.full((32,), 0.5))


class Decayed(nn.Module):
    """A mixer with a table that is not saved, and a plain tensor: neither can be built without values."""

    def __init__(self, dim, strength):
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("table", torch.linspace(0.1, 1, dim) * strength, persistent=False)
        self.plain = torch.ones(dim)

    def forward(self, x, cond=None, *, order=None):
        return self.proj(x) * self.table + self.plain


def own_block(config, spec):
    return DiMSUMBlock(config.dim, config.dim, spatial=None, fusion=None, drop_path=spec.drop_path)


@register_part("mixer", "decayed")
def decayed(config, spec):
    return Decayed(config.branch_dim, 2.0)


@register_part("norm", "halved")
def halved(config, spec):
    return nn.LayerNorm(config.dim)


@register_part("mlp", "narrow")
def narrow(config, spec):
    return nn.Sequential(nn.Linear(config.dim, 4), nn.GELU(), nn.Linear(4, config.dim))


@register_part("fusion", "sum")
class Sum(nn.Module):
    def __init__(self, config, spec):
        super().__init__()
        self.proj = nn.Linear(config.dim // 2, config.dim)

    def forward(self, spatial, frequency):
        return self.proj(spatial + frequency)


@register_part("positions", "shifted")
class Shifted(nn.Module):
    def __init__(self, config, spec):
        super().__init__()
        assert spec is None
        self.shift = nn.Linear(config.dim, config.dim)

    def forward(self, tokens, cond):
        return tokens + self.shift(cond)[:, None, None]


class Averaged(nn.Module):
    def __init__(self, config, spec):
        super().__init__()
        self.proj = nn.Linear(config.branch_dim, config.branch_dim)

    def forward(self, x, cond=None):
        return x + self.proj(x.mean((1, 2), keepdim=True))


@register_part("spatial", "averaged")
def averaged(config, spec):
    return Averaged(config, spec)


@register_part("frequency", "averaged")
def averaged_too(config, spec):
    return Averaged(config, spec)


@register_part("attention", "scaled")
class Scaled(nn.Module):
    def __init__(self, config, spec):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, cond):
        return x * self.scale


def run(model):
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    x, t, y = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 2])
    out = model(x, t, y)
    (out * torch.randn_like(out)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    return model.eval()(x, t, y), (x, t, y)


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        ({"make_block": own_block}, {"make_block": f"{__name__}.own_block"}),
        ({"positions": "shifted"}, {"positions": f"shifted: {__name__}.Shifted"}),
        ({"spatial": "averaged"}, {"spatial": f"averaged: {__name__}.averaged"}),
        ({"spatial": "none", "frequency": "averaged"}, {"frequency": f"averaged: {__name__}.averaged_too"}),
        ({"mixer": "decayed"}, {"mixer": f"decayed: {__name__}.decayed"}),
        ({"norm": "halved", "final_norm": True}, {"norm": f"halved: {__name__}.halved"}),
        ({"mlp": "narrow"}, {"mlp": f"narrow: {__name__}.narrow"}),
        ({"fusion": "sum"}, {"fusion": f"sum: {__name__}.Sum"}),
        ({"attention": "scaled"}, {"attention": f"scaled: {__name__}.Scaled"}),
    ],
)
def test_an_own_part_trains_saves_and_loads(given, needs, tmp_path, monkeypatch):
    model = tiny(**given)
    out, arguments = run(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["needs"] == needs
    passed = {name: part for name, part in given.items() if name == "make_block"}
    loaded = load_pretrained(tmp_path, **passed)
    assert torch.equal(loaded(*arguments), out)
    assert torch.equal(copy.deepcopy(loaded)(*arguments), out)
    if passed:
        with pytest.raises(CheckpointError, match=r"make_block= \(it was .*own_block\)"):
            DiMSUM.from_pretrained(tmp_path)
        return
    for kind in needs:  # as in a process that has not registered it
        fresh = Registry(kind, "add one")
        for name in part_names(kind):
            if name != given[kind]:
                fresh.add(name, find_part(kind, name))
        monkeypatch.setitem(part_registry._parts, kind, fresh)
    with pytest.raises(CheckpointError, match=f"register {next(iter(needs.values()))}"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        {"spatial_scan": "hilbert"},
        {"frequency_scan": "hilbert"},
        {"spatial_scan": "snake", "frequency_scan": "raster"},
        {"transform": "dct", "layout": "mosaic"},
        {"mixer": "Mamba1", "layout": "Mosaic", "fusion": "swap-k"},
        {"frequency": "EinFFT", "positions": "rotary", "conditioning": "conv_state"},
        {"frequency": "none", "mlp": "none", "positions": "conditional", "spatial_scan": "hilbert"},
        {"spatial": "none", "mlp_domain": "frequency", "band_scaling": "orthonormal", "transform": "db2"},
        {"mlp": "none", "spatial_alternation": "reverse", "frequency_alternation": "none", "positions": "sincos"},
        {"spatial": "none", "frequency": "einfft", "positions": "Rotary"},
    ],
)
def test_common_choices_by_name(given, tmp_path):
    model = tiny(**given)
    out, arguments = run(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_pretrained(tmp_path)(*arguments), out)


BUILT_IN = [
    ("positions", "rotary", "RotaryPositions"),
    ("positions", "conditional", "ConditionalPositions"),
    ("spatial", "mamba", "SpatialMambaBlock"),
    ("frequency", "mamba", "WaveletMambaBlock"),
    ("frequency", "einfft", "EinFFT"),
    ("mixer", "mamba1", "MambaMixer"),
    ("mixer", "mamba2", "Mamba2Mixer"),
    ("mixer", "gla", "GLAMixer"),
    ("mixer", "attention", "AttentionMixer"),
    ("fusion", "cross", "SpatialFrequencyFusion"),
    ("fusion", "swap_k", "SpatialFrequencyFusion"),
    ("fusion", "linear", "SpatialFrequencyFusion"),
    ("fusion", "window", "WindowAttention"),
    ("fusion", "linear_attention", "LinearAttention"),
    ("attention", "transformer", "SharedAttention"),
    ("attention", "window", "WindowAttention"),
    ("attention", "linear_attention", "LinearAttention"),
    ("mlp", "gated", "GatedMlp"),
    ("mlp", "plain", "Mlp"),
    ("norm", "rms", "RMSNorm"),
    ("norm", "layer", "LayerNorm"),
]


@pytest.mark.parametrize(("kind", "name", "made"), BUILT_IN)
def test_a_part_of_the_library_is_what_its_name_says(kind, name, made):
    model = tiny(depth=1, attention_every=1, **{kind: name})
    assert made in {type(module).__name__ for module in model.modules()}
    assert model.needs() == {}
    if made == "SpatialFrequencyFusion":
        assert model.blocks[0].fusion.mode == name


NO_MODULE = {
    ("positions", "learnt"),
    ("positions", "sincos"),
    ("spatial", "none"),
    ("frequency", "none"),
    ("mlp", "none"),
}


def test_every_name_of_a_part_has_one_maker():
    named = {(kind, name) for kind, name, _ in BUILT_IN} | NO_MODULE
    ours = {kind: {name for part, name in named if part == kind} for kind in PART_KINDS}
    known = {kind: {name for name in part_names(kind) if not users_parts({kind: name})} for kind in PART_KINDS}
    assert known == ours
    with pytest.raises(ConfigError, match="register_part"):
        find_part("mixer", "mamba9")


def rolled(H, W, path=0):
    return np.roll(np.arange(H * W), path)


def test_a_family_of_paths_added_to_scans_is_known_to_both_models():
    register_scan_order("rolled_path", rolled)
    assert {"sweep", "zigma", "jpeg", "rolled_path"} <= set(list_scan_orders(option="path")) < set(list_scan_orders())
    paths = [scan_order("rolled_path", path=i) for i in range(3)]
    plan = tiny(depth=3, scan_path="rolled_path").plan
    assert [spec.spatial_scan for spec in plan] == [scan_order("raster").then(path) for path in paths]
    small = {"img_size": 8, "dim": 32, "depth": 3, "num_classes": 3}
    assert [block.scan for block in create_model("zigma_s2", scan="Rolled-Path", **small).blocks] == paths
    fixed = create_model("zigma_s2", scan="rolled_path(path=0)", **small)
    assert [block.scan for block in fixed.blocks] == paths[:1] * 3


@pytest.mark.parametrize(
    ("alternation", "turns"),
    [
        ("none", [(), (), (), (), ()]),
        ("transpose", [(), ("transpose",), (), ("transpose",), ()]),
        ("reverse", [(), ("reverse",), (), ("reverse",), ()]),
        ("transpose_reverse", [(), ("reverse",), ("transpose",), ("transpose", "reverse"), ()]),
    ],
)
@pytest.mark.parametrize("more", [{}, {"bidirectional": True}])
def test_how_scans_alternate(alternation, turns, more):
    options = {"depth": 5, "spatial_scan": "snake", "frequency_scan": "hilbert", **more}
    plan = tiny(**options, spatial_alternation=alternation, frequency_alternation=alternation).plan
    for name in ("snake", "hilbert"):
        expected = [scan_order(name, **dict.fromkeys(turn, True)) for turn in turns]
        assert [getattr(spec, f"{'spatial' if name == 'snake' else 'frequency'}_scan") for spec in plan] == expected
    default = tiny(**options).plan
    in_space, in_frequency = ("none", "none") if more else ("transpose_reverse", "transpose")
    if alternation == in_space:
        assert [spec.spatial_scan for spec in default] == [spec.spatial_scan for spec in plan]
    if alternation == in_frequency:
        assert [spec.frequency_scan for spec in default] == [spec.frequency_scan for spec in plan]


@pytest.mark.parametrize("scan", [*list_scan_orders(), "transposed(snake)", "raster.then(hilbert)"])
def test_every_order_by_name_on_every_grid(scan):
    scan = {"window": "window(window=3)"}.get(scan, scan)
    model = tiny(depth=4, attention_every=0, spatial_scan=scan, frequency_scan=scan).eval()
    for block in model.blocks:
        nn.init.normal_(block.modulation.linear.weight, std=0.1)
    nn.init.normal_(model.head.linear.weight)
    for size in ((8, 8), (6, 10), (2, 14)):
        out = model(torch.randn(1, 4, *size), torch.rand(1), torch.tensor([1]))
        assert out.shape[2:] == size
        assert torch.isfinite(out).all()
        assert out.any()


@pytest.mark.parametrize("positions", ["learnt", "sincos", "rotary", "conditional", "shifted"])
def test_positions_at_other_sizes_and_after_fine_tuning(positions, tmp_path):
    model = tiny(positions=positions).eval()
    has_table = positions in ("learnt", "sincos")
    assert ("pos_embed" in dict(model.named_parameters())) == has_table
    run(model)
    model.eval().save_pretrained(tmp_path)
    x, t, y = torch.randn(2, 4, 12, 6), torch.rand(2), torch.tensor([0, 2])
    expected = model(x, t, y)
    model.set_input_size((12, 6))
    assert torch.equal(model(x, t, y), expected)
    assert (model.pos_embed is not None) == has_table
    with pytest.warns(UserWarning, match="positions") if has_table else contextlib.nullcontext():
        tuned = create_model(
            "dimsum_tiny", checkpoint_path=tmp_path, **{**TINY, "img_size": (12, 6), "positions": positions}
        )
    assert torch.equal(tuned(x, t, y), expected)
    model.reset_classifier(7)
    assert model(x, t, y + 4).shape == x.shape
    if positions != "learnt":
        with pytest.raises(CheckpointError, match=f"options of the model, got positions='{positions}'; pass these too"):
            create_model("dimsum_tiny", checkpoint_path=tmp_path, **TINY)


def test_scans_differ_from_block_to_block():
    plan = tiny(depth=4, spatial_scan="hilbert", frequency_scan="hilbert").plan
    assert len({spec.spatial_scan for spec in plan}) == 4
    assert len({spec.frequency_scan for spec in plan}) == 2
    assert [spec.index for spec in plan] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mixer": "mamb1"}, "did you mean 'mamba1'"),
        ({"spatial_scan": "hilbrt"}, "hilbert"),
        ({"snake": True, "spatial_scan": "hilbert"}, "spatial_scan"),
        ({"make_blok": own_block}, "did you mean make_block"),
        ({"mlp": "gatd"}, "'gated'"),
        ({"positions": "rotery"}, "did you mean 'rotary'"),
        ({"frequency": "fft"}, "frequency: expected one of 'none', 'mamba', 'einfft'"),
        ({"spatial_alternation": "flip"}, "'transpose_reverse'"),
        ({"spatial": "none", "frequency": "none"}, "spatial, frequency: expected one that is not 'none'"),
        ({"spatial": "none", "spatial_scan": "snake"}, "spatial_scan: expected 'raster' with spatial='none', got"),
        ({"spatial": "none", "frequency": "einfft", "d_state": 8}, "d_state: expected 16 with spatial='none' and"),
        ({"frequency": "einfft", "levels": 1}, "levels: expected 2 with frequency='einfft', got 1"),
        ({"frequency": "none", "fusion": "linear"}, "fusion: expected 'cross' with a single branch, got 'linear'"),
        ({"mlp_domain": "frequency"}, "mlp_domain: expected 'space' but for spatial='none', frequency='mamba'"),
        ({"frequency": "einfft", "dim": 36, "fusion_heads": 2, "attention_every": 0}, "a divisor of the width 18"),
    ],
)
def test_misspelt_parts_are_named(given, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**given)


@pytest.mark.parametrize("kind", ["mixer", "fusion", "attention", "norm"])
def test_what_makes_a_part_returns_one(kind, monkeypatch):
    fresh = Registry(kind, "add one")
    fresh.add("absent", lambda config, spec: None)
    monkeypatch.setitem(part_registry._parts, kind, fresh)
    with pytest.raises(ConfigError, match=f"{kind}: expected a module from what makes 'absent', got None"):
        tiny(attention_every=1, **{kind: "absent"})


@pytest.mark.parametrize(("kind", "name"), [("mixer", "mamba1"), ("mixer", "decayed"), ("mixr", "x"), ("mlp", "")])
def test_names_of_parts_are_free_and_good(kind, name):
    with pytest.raises(ConfigError, match="expected"):
        register_part(kind, name)(lambda config, spec: nn.Identity())


def test_intermediates():
    model = tiny(depth=4, attention_every=2).eval()
    _, arguments = run(model)
    every = model.forward_intermediates(*arguments)
    assert [x.shape for x in every] == [(2, 32, 4, 4)] * 4
    last = model.forward_intermediates(*arguments, indices=1, output_fmt="NHWC")
    assert torch.equal(last[0], model.forward_features(*arguments))
    assert torch.equal(last[0].permute(0, 3, 1, 2), every[3])
    picked = model.forward_intermediates(*arguments, indices=[-1, 0])
    assert torch.equal(picked[0], every[3])
    assert torch.equal(picked[1], every[0])
    compiled = torch.compile(lambda *a: model.forward_intermediates(*a, indices=[1]), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments)[0], every[1])
    for bad in ({"indices": [4]}, {"indices": 5}, {"indices": 0}, {"norm": True}, {"output_fmt": "NLC"}):
        with pytest.raises(ConfigError):
            model.forward_intermediates(*arguments, **bad)


def test_make_block_is_the_default():
    model = tiny(make_block=make_block)
    assert list_models("dimsum_tiny") == ["dimsum_tiny"]
    assert model.state_dict().keys() == tiny().state_dict().keys()
