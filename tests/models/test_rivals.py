"""DiT, SiT and ZigMa agree with their released code."""

import json

import pytest
import torch
from safetensors import safe_open
from support import GOLDEN, fill, relative_error

from wavemamba import CheckpointError, ConfigError, ShapeError, create_model
from wavemamba.models import dit, zigma

LAST_STEP = 999


def tokens_of(out):
    return (out[0] if isinstance(out, tuple) else out).flatten(1, 2)


def golden(name):
    with safe_open(GOLDEN / "rivals" / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
    shapes = json.loads(metadata["parameters"])
    state = {key: fill(int(metadata["seed"]), key, tuple(shape)) for key, shape in shapes.items()}
    return json.loads(metadata["config"]), state, json.loads(metadata["all"]), tensors


def build(name):
    config, state, _, tensors = golden(name)
    if name.startswith("zigma"):
        model = zigma.from_released(state, config)
    else:
        model = dit.from_released(state, config, release=name)
    t = tensors["in.t"].double()
    return model, 1 - t / LAST_STEP if name == "dit" else t, tensors


NAMES = ["dit", "sit", "zigma_zigzag", "zigma_v2", "zigma_text"]


@pytest.mark.parametrize("name", NAMES)
def test_activations_and_gradients_agree(name):
    model, t, expected = build(name)
    seen = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda m, a, out, i=index: seen.update({f"act.blocks.{i}.out": tokens_of(out)}))
    model.time_embed.register_forward_hook(lambda m, a, out: seen.update({"act.t_embedder.out": out}))
    x = expected["in.x"].requires_grad_()
    out = model(x, t, expected["in.y"])
    assert relative_error(out, expected["out"]) < 1e-5
    for activation, value in seen.items():
        if activation in expected:
            assert relative_error(value, expected[activation]) < 1e-5, activation
    (out * expected["grad.weight"]).sum().backward()
    assert relative_error(x.grad, expected["grad.in.x"]) < 1e-4
    own = dict(model.named_parameters())
    checked = [key.removeprefix("grad.param.") for key in expected if key.startswith("grad.param.")]
    _, called = model.import_state(golden(name)[1])
    names = {called(name): parameter for name, parameter in own.items()}
    for key in checked:
        assert relative_error(names[key].grad.reshape(-1), expected[f"grad.param.{key}"].reshape(-1)) < 1e-4, key
    assert checked or name == "zigma_text"


def load(name, file, **more):
    config = golden(name)[0]
    if name.startswith("zigma"):
        return zigma.load_released(file, config, **more)
    return dit.load_released(file, config=config, release=name, **more)


@pytest.mark.parametrize("name", NAMES)
def test_a_released_file_loads_whole_or_not_at_all(name, tmp_path):
    """The names and shapes of the whole state dict of the released code, in the file that its training writes."""
    file, shapes = tmp_path / "released.pt", golden(name)[2]
    torch.manual_seed(0)
    state = {key: 0.01 * torch.randn(shape) for key, shape in shapes.items()}
    torch.save({"ema": state, "model": {}, "args": None}, file)
    model = load(name, file)
    _, called = model.import_state(state)
    own = model.state_dict()
    assert {called(key) for key in own} == set(state)
    assert all(torch.equal(value.reshape(-1), state[called(key)].reshape(-1)) for key, value in own.items())

    lost = "blocks.1.adaLN_modulation.1.bias"
    torch.save({"ema": {key: value for key, value in state.items() if key != lost}}, file)
    with pytest.raises(CheckpointError, match=rf"missing: {lost}"):
        load(name, file)
    torch.save({"ema": {**state, lost: torch.zeros(3)}}, file)
    with pytest.raises(CheckpointError, match=rf"wrong shape: {lost}"):
        load(name, file)
    torch.save({"ema": {**state, "blocks.1.norm9.weight": torch.zeros(3)}}, file)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm9\.weight"):
        load(name, file)


def test_a_published_width_is_told_from_its_file(tmp_path):
    """The golden file's names, with the width 384 of DiT-S/2 in the place of 48, its positions and its classes."""
    shapes = {
        key: [384 * size // 48 if size % 48 == 0 else size for size in shape] for key, shape in golden("dit")[2].items()
    } | {"pos_embed": [1, 256, 384], "y_embedder.embedding_table.weight": [1001, 384]}
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "DiT-S-2.pt")
    for release in ("dit", "sit"):
        model = dit.load_released(tmp_path / "DiT-S-2.pt", release=release)
        assert model.config == create_model(f"{release}_s2", depth=3).config


@pytest.mark.parametrize(("size", "millions"), [("s2", 33), ("b2", 130), ("l2", 458), ("xl2", 675)])
def test_published_sizes(size, millions):
    with torch.device("meta"):
        model = create_model(f"dit_{size}")
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - millions) < 1


def test_a_released_file_starts_a_model_made_by_name(tmp_path):
    config, _, shapes, _ = golden("dit")
    state = {name: 0.01 * torch.randn(shape) for name, shape in shapes.items()}
    torch.save({"ema": state, "model": {}, "args": None}, tmp_path / "dit.pt")
    with pytest.raises(ConfigError, match=r"num_heads: the width 48"):
        dit.load_released(tmp_path / "dit.pt")
    options = {"img_size": 8, "dim": 48, "depth": 3, "num_heads": 4, "num_classes": 7}
    model = create_model("dit_s2", checkpoint_path=tmp_path / "dit.pt", **options)
    assert torch.equal(model.pos_embed.flatten(1, 2), state["pos_embed"])
    assert model.config.to_dict() == {**dit.from_released(state, config).config.to_dict(), "out_chans": None}


def test_another_familys_file_is_refused():
    _, state, _, _ = golden("zigma_v2")
    with pytest.raises(CheckpointError, match="released DiT names"):
        dit.from_released(state)
    with pytest.raises(CheckpointError, match="released ZigMa names"):
        zigma.from_released(golden("dit")[1], golden("zigma_v2")[0])
    with pytest.raises(ConfigError, match="scan_type: expected v1, v2, zigzagN8"):
        zigma.from_released(golden("zigma_v2")[1], {**golden("zigma_v2")[0], "scan_type": "randomN8"})
    with pytest.raises(ConfigError, match="did you mean hidden_size"):
        dit.from_released(golden("dit")[1], {"hiden_size": 48})


def test_clocks():
    model = create_model("sit_s2", depth=1, img_size=8, num_classes=0)
    reads = []
    model.time_embed.register_forward_hook(lambda m, args, out: reads.append(args[0]))
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.0, 1.0])
    assert model(x, t).shape == x.shape
    assert torch.equal(reads[0], t)
    other = create_model("dit_s2", depth=1, img_size=8, num_classes=0)
    other.time_embed.register_forward_hook(lambda m, args, out: reads.append(args[0]))
    assert other(x, t).shape == (2, 8, 8, 8)
    assert torch.equal(reads[1], torch.tensor([999.0, 0.0]))


def test_text_takes_the_place_of_classes():
    options = {"dim": 32, "depth": 2, "img_size": 8, "context_dim": 12, "num_classes": 0}
    model = create_model("zigma_s2", **options)
    assert (model.condition.kind, model.condition.width) == ("tokens", 12)
    x, t = torch.randn(2, 4, 8, 12), torch.rand(2)
    for length in (1, 7):
        assert model(x, t, torch.randn(2, length, 12)).shape == x.shape
    with pytest.raises(ShapeError, match=r"y: expected text tokens \(B, T, 12\), got None"):
        model(x, t)
    with pytest.raises(ConfigError, match="num_classes: expected 0 with context_dim"):
        create_model("zigma_s2", **{**options, "num_classes": 3})


@pytest.mark.parametrize("scan", ["zigma", "hilbert", "sweep", "snake", "column"])
def test_zigma_walks_any_order(scan):
    model = create_model("zigma_s2", dim=32, depth=3, img_size=8, num_classes=3, scan=scan)
    x, t = torch.randn(2, 4, 8, 12), torch.rand(2)
    assert model(x, t, torch.tensor([0, 2])).shape == x.shape
