import argparse
import json
import pickle
import random
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from support import GOLDEN, golden_model, relative_error

from wavemamba import CheckpointError, ConfigError, DiMSUM, WavemambaError, create_model, scan_order
from wavemamba.models.checkpoints import from_released, load_released
from wavemamba.models.dimsum.config import DiMSUMConfig
from wavemamba.models.loading import load_into
from wavemamba.models.weights import read_weights


@pytest.fixture(scope="module")
def golden():
    return golden_model("dimsum")


def assert_is_golden(model, tensors):
    with torch.no_grad():
        out = model(tensors["in.x"], tensors["in.t"], tensors["in.y"])
    assert relative_error(out, tensors["out"]) < 1e-5


def released_shapes(name):
    return json.loads((GOLDEN / f"released_keys_{name}.json").read_text())


@pytest.mark.parametrize(("name", "classes"), [("imagenet256", 1000), ("celeba256", 1)])
def test_released_names_and_shapes_are_recognised(name, classes):
    """On the meta device: every name of the released L/2 finds its place and nothing is left over."""
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in released_shapes(name).items()}
        model = from_released(state)
    assert model.config == DiMSUMConfig(num_classes=classes, class_dropout=0.15 if classes > 1 else 0.0)
    assert model.null_class == (1000 if classes == 1000 else None)


@pytest.mark.slow
def test_a_file_of_the_released_shapes_loads_into_dimsum_l2(tmp_path):
    state = {k: torch.zeros(shape, dtype=torch.bfloat16) for k, shape in released_shapes("imagenet256").items()}
    for name in ("blocks.15.freq_mamba.mixer.conv1d.weight", "attn_block.mlp.w3.weight"):
        state[name].normal_()
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = create_model("dimsum_l2", checkpoint_path=tmp_path / "pytorch_model.bin")
    mixer = model.blocks[15].frequency.step.mixer
    convolution = state["blocks.15.freq_mamba.mixer.conv1d.weight"][:, 0]
    assert torch.equal(mixer.directions[0].conv_weight, convolution.float())
    assert torch.equal(model.attentions[0].mlp.fc2.weight, state["attn_block.mlp.w3.weight"].float())


def test_a_training_checkpoint_with_a_namespace(golden, tmp_path):
    config, state, tensors = golden
    raw = {name: torch.zeros_like(value) for name, value in state.items()}
    content = {"epoch": 3, "model": raw, "ema": state, "opt": {}, "args": argparse.Namespace(lr=1e-4)}
    torch.save(content, tmp_path / "0225.pt")
    assert read_weights(tmp_path / "0225.pt").keys() == state.keys()
    assert_is_golden(from_released(read_weights(tmp_path / "0225.pt"), config), tensors)
    assert not read_weights(tmp_path / "0225.pt", "model")["pos_embed"].any()


@pytest.mark.parametrize("suffix", [".bin", ".safetensors", ".pt"])
def test_every_file_kind_loads_and_infers(golden, tmp_path, suffix):
    _, state, tensors = golden
    # Attention every 4 blocks is what cannot be inferred; a model of 4 blocks with it has one place less.
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    model = load_released(path)
    assert model.config.attention_every == 4
    assert (model.config.dim, model.config.depth, model.config.num_classes) == (32, 4, 10)
    assert torch.equal(model.pos_embed.flatten(1, 2), state["pos_embed"])
    assert model(tensors["in.x"], tensors["in.t"], tensors["in.y"]).shape == tensors["out"].shape


def test_one_class_without_dropout_is_unconditional(golden):
    config, state, tensors = golden
    state = {**state, "y_embedder.embedding_table.weight": state["y_embedder.embedding_table.weight"][:1]}
    model = from_released(state, {**config, "num_classes": 1, "label_dropout": 0})
    x, t = tensors["in.x"], tensors["in.t"]
    assert model.null_class is None
    assert torch.equal(model(x, t), model(x, t, torch.zeros(2, dtype=torch.int64)))


def test_names_that_do_not_fit_are_all_listed(golden):
    config, state, _ = golden
    broken = dict(state)
    del broken["blocks.2.norm.weight"]
    broken["blocks.1.surplus"] = torch.zeros(3)
    broken["final_layer.linear.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as error:
        from_released(broken, config)
    for text in ("missing: blocks.2.norm.weight", "blocks.1.surplus", "wrong shape: final_layer.linear.bias", "(7,)"):
        assert text in str(error.value)
    with pytest.raises(CheckpointError, match=r"wrong dtype: pos_embed, .* got torch\.int64"):
        from_released({**state, "pos_embed": state["pos_embed"].long()}, config)


@pytest.mark.parametrize("name", ["dimsum", *(f"variants/{path.stem}" for path in (GOLDEN / "variants").iterdir())])
def test_every_missing_name_is_listed_as_the_released_code_calls_it(name):
    config, state, _ = golden_model(name)
    with pytest.raises(CheckpointError) as error:
        from_released({"x_embedder.surplus": torch.zeros(1)}, config)
    listed = set(re.findall(r"missing: (\S+)", str(error.value)))
    inert = {key for key in state if "cond_proj" in key or "zigzag_paths" in key}
    inert |= {"pos_embed"} if config.get("pe_type") == "rope" else set()
    spare = {key for key in state if re.match(r"attn_block\.[1-9]", key)}  # may have no place to run in
    assert state.keys() - inert - spare <= listed <= state.keys()


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("dct", {"blocks.0.freq_mamba.dct_conv.weight": (256, 1, 4, 4)}),
        ("wave", {"blocks.0.dwt.w_ll": (1, 1, 2, 2), "blocks.0.idwt.filters": (4, 1, 2, 2)}),
        ("einfft", {}),
        ("raw", {}),
    ],
)
def test_what_names_tell_of_the_blocks_is_inferred(name, constants):
    """All but how often attention runs, and what matters in training alone."""
    config, state, _ = golden_model(f"variants/{name}")
    expected = from_released(state, config)
    model = from_released({**state, **{key: torch.zeros(shape) for key, shape in constants.items()}})
    assert model.config.replace(attention_every=2, class_dropout=0.1, drop_path_rate=0.1) == expected.config
    assert model.state_dict().keys() == expected.state_dict().keys()


@pytest.mark.parametrize("name", ["linear", "window"])
def test_blocks_of_one_shape_are_told_by_the_configuration_alone(name, tmp_path):
    config, state, golden = golden_model(f"variants/{name}")
    with pytest.raises(CheckpointError, match="linear, window or wave ones; pass `config`"):
        from_released(state)
    torch.save({"ema": state}, tmp_path / "0001.pt")
    assert_is_golden(load_released(tmp_path / "0001.pt", config=config), golden)


def test_a_layer_of_modulation_that_is_cut_in_two_is_told_by_its_rows():
    config, state, _ = golden_model("variants/linear")
    key = "blocks.1.adaLN_modulation.1.bias"
    with pytest.raises(CheckpointError, match=rf"wrong shape: {key} rows 96 to 191, expected \(96,\), got \(4,\)"):
        from_released({**state, key: state[key][:100]}, config)
    raw, raw_state, _ = golden_model("variants/raw")
    with pytest.raises(CheckpointError, match=rf"wrong shape: {key}, expected \(96,\), got \(192,\)"):
        from_released({**raw_state, key: torch.zeros(192)}, raw)


@pytest.mark.parametrize(
    ("name", "more", "orders"),
    [
        ("window", {"scan_type": "sweep_8"}, ["window(window=4)", "window(window=4).then(sweep(path=1))"]),
        ("window", {"scanning_continuity": True}, ["window(window=4)", "transposed(window(window=4))"]),
        ("wave", {"scanning_continuity": True}, ["snake", "reversed(snake)", "transposed(snake)"]),
        ("wave", {"scan_type": "jpeg_8"}, ["raster.then(jpeg)", "raster.then(jpeg(path=1))"]),
        ("linear", {"scanning_continuity": True}, ["snake", "reversed(snake)"]),
        ("dct", {}, ["jpeg", "transposed(jpeg)", "jpeg", "transposed(jpeg)"]),
    ],
)
def test_which_orders_a_variant_walks(name, more, orders):
    config, state, _ = golden_model(f"variants/{name}")
    model = from_released(state, {**config, **more})
    part = "frequency_scan" if name in ("wave", "dct") else "spatial_scan"
    plan = [getattr(spec, part) for spec in model.plan]
    for order, expected in zip(plan, orders, strict=False):
        assert torch.equal(order.permutation(8, 8), scan_order(expected).permutation(8, 8))


def test_positions_that_are_not_learnt(golden):
    config, state, tensors = golden
    model = from_released(state, {**config, "learnable_pe": False})
    assert not model.pos_embed.requires_grad
    assert_is_golden(model, tensors)


@pytest.mark.parametrize(("rival", "family"), [("dit", "DiT"), ("zigma_v2", "ZigMa"), ("zigma_text", "ZigMa")])
def test_another_familys_weights_are_named(rival, family):
    with safe_open(GOLDEN / "rivals" / f"{rival}.safetensors", "pt") as file:
        shapes = json.loads(file.metadata()["all"])
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    for config in (None, golden_model("variants/raw")[0]):
        with pytest.raises(CheckpointError, match=f"got names of a {family}; wavemamba.models.{family.lower()} reads"):
            from_released(state, config)


def test_conditional_positions_are_what_the_released_code_would_compute(golden):
    """It has the layers, and stops at a misspelt name: here by hand, in float64."""
    config, state, tensors = golden
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "proj.0.weight": (32, 1, 3, 3), "proj.0.bias": (32,), "norm.weight": (32,), "norm.bias": (32,),
        "adaLN_modulation.1.weight": (64, 32), "adaLN_modulation.1.bias": (64,),
    }  # fmt: skip
    state = dict(state)
    state.update({f"pos_cnn.{key}": torch.randn(shape, generator=generator) for key, shape in shapes.items()})
    model = from_released(state, {**config, "pe_type": "cpe"}).double()
    part = {key: state[f"pos_cnn.{key}"].double() for key in shapes}
    x, t, y = tensors["in.x"].double(), tensors["in.t"].double(), tensors["in.y"]
    cond = model.embed_condition(t, y)
    embedded = F.conv2d(x, state["x_embedder.proj.weight"].double(), state["x_embedder.proj.bias"].double(), stride=2)
    seen = embedded + F.conv2d(embedded, part["proj.0.weight"], part["proj.0.bias"], padding=1, groups=32)
    normed = F.layer_norm(seen.permute(0, 2, 3, 1), (32,), part["norm.weight"], part["norm.bias"], eps=1e-5)
    modulation = F.silu(cond) @ part["adaLN_modulation.1.weight"].T + part["adaLN_modulation.1.bias"]
    shift, scale = modulation[:, None, None].chunk(2, dim=-1)
    placed = model.place(model.patch_embed(x), cond)
    assert relative_error(placed, normed * (1 + scale) + shift) < 1e-6
    assert model(x, t, y).shape == x.shape
    assert model.config.positions == "conditional"
    inferred = from_released({**state}).config
    assert inferred.positions == "conditional"


def test_a_failed_load_leaves_the_model_as_it_was(tmp_path):
    model = create_model("dimsum_tiny", img_size=8, depth=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: v + 1 for k, v in before.items() if k != "pos_embed"}
    torch.save(state, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match="missing: pos_embed"):
        load_into(model, tmp_path / "model.bin")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a_hostile_file_runs_nothing(tmp_path, suffix):
    touched, path = tmp_path / "touched", tmp_path / f"model{suffix}"
    torch.save({"ema": Hostile(touched)}, path)
    with pytest.raises(CheckpointError, match="tensors alone"):
        load_released(path)
    path.write_bytes(pickle.dumps(Hostile(touched)))
    with pytest.raises(CheckpointError):
        load_released(path)
    assert not touched.exists()


def test_the_restricted_reader_is_one_that_cannot_be_bypassed():
    """Before 2.10 a file could run code though `weights_only=True` was said (CVE-2026-24747)."""
    project = (GOLDEN.parents[1] / "pyproject.toml").read_text()
    (needed,) = re.findall(r'"torch>=([\d.]+)"', project)
    assert tuple(map(int, needed.split("."))) >= (2, 10)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_a_truncated_file_is_an_error(golden, tmp_path, suffix, kept):
    path = tmp_path / f"model{suffix}"
    save_file(golden[1], path) if suffix == ".safetensors" else torch.save(golden[1], path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(CheckpointError):
        load_released(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_are_the_same_error(tmp_path, kind):
    state, path = {f"weight{i}": torch.ones(3) for i in range(4)}, tmp_path / f"model.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"ema": state}, path, _use_new_zipfile_serialization=kind == "zip")
    content, chance, failed = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 3, 10))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_weights(path)  # bytes of a number can change unseen
        except CheckpointError:
            failed += 1
    assert failed > 10


def test_which_weights_are_taken(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"ema": {"weight": torch.ones(1)}}, path)
    assert read_weights(path)["weight"] == 1
    with pytest.raises(CheckpointError, match=r"'model' or 'state_dict' or .*, got \['ema'\]"):
        read_weights(path, "model")
    with pytest.raises(ConfigError, match="ema, model"):
        load_released(path, "emma")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x_embedder.proj.weight", torch.zeros(3)),
        ("pos_embed", torch.tensor(1.0)),
        ("y_embedder.embedding_table.weight", torch.zeros(3)),
        ("final_layer.linear.weight", torch.zeros(())),
        ("blocks.x.norm.weight", torch.zeros(32)),
        ("pos_embed", torch.zeros(1, 63, 32)),
    ],
)
def test_shapes_that_tell_nothing_are_named(golden, name, value):
    with pytest.raises(CheckpointError, match=name):
        from_released({**golden[1], name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": None}, "depth"),
        ({"scan_type": 3}, "scan_type: expected none or v2"),
        ({"use_attn_every_k_layers": "4"}, "use_attn_every_k_layers"),
        ({"label_dropout": None}, "label_dropout"),
        ({"img_resolution": [16]}, "img_size"),
        ({"pe_type": "alibi"}, "pe_type: expected ape or rope or cpe"),
        ({"pe_type": "cpe"}, r"missing: pos_cnn\.proj\.0\.weight"),
        ({"block_type": ["raw"]}, "block_type: expected combined or combined_fourier or"),
        ({"block_type": "linear"}, r"not in the model: blocks\.0\.spatial_mamba\.mixer\.A_log"),
        ({"block_type": "combined_fourier", "scan_type": "v2"}, "scan_type: expected 'none' with block_type="),
        ({"block_type": "combined_fourier", "scanning_continuity": True}, "scanning_continuity: expected False with"),
        ({"block_type": "wave", "use_gated_mlp": False}, "use_gated_mlp: expected True with block_type='wave'"),
    ],
)
def test_bad_released_configurations(golden, change, message):
    config, state, _ = golden
    with pytest.raises(WavemambaError, match=message):
        from_released(state, {**config, **change})
    with pytest.raises(ConfigError, match="img_resolution, patch_size"):
        from_released(state, {"depth": 4})


def test_other_bad_checkpoints(golden, tmp_path):
    config, state, _ = golden
    with pytest.raises(CheckpointError, match="found none"):
        load_released(tmp_path / "nothing.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="named tensors"):
        load_released(tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="released DiMSUM names"):
        from_released({"weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="got NoneType"):
        from_released(None)
    with pytest.raises(CheckpointError, match="block_type"):
        from_released(state, {**config, "block_type": "conv"})
    with pytest.raises(ConfigError, match="hidden_size"):
        from_released(state, {**config, "hiden_size": 3})


def test_bad_saved_folders(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        DiMSUM.from_pretrained(tmp_path)
    model = create_model("dimsum_tiny", img_size=8, depth=1)
    model.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="safetensors"):
        DiMSUM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"dept": 3}, "did you mean depth"),
        ({"img_size": None}, "img_size"),
        ({"dim": 130}, "dim"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "config": {**config["config"], **change}}))
        with pytest.raises(CheckpointError, match=f"config.json.*{message}"):
            DiMSUM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        DiMSUM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "family": "other"}))
    with pytest.raises(CheckpointError, match="configuration of a DiMSUM"):
        DiMSUM.from_pretrained(tmp_path)


def test_pretrained_weights_come_from_the_hub(golden, monkeypatch, tmp_path):
    asked = []
    torch.save(
        {k: torch.zeros(s) for k, s in released_shapes("imagenet256").items() if k == "pos_embed"}, tmp_path / "x.bin"
    )

    def download(repository, file, **_options):
        asked.append((repository, file))
        return str(tmp_path / "x.bin")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with torch.device("meta"), pytest.raises(CheckpointError, match="missing"):
        create_model("dimsum_l2", pretrained=True)
    assert asked == [("haopt/dimsum-L2-imagenet256", "pytorch_model.bin")]


def test_without_a_network(monkeypatch):
    def download(*_args, **_options):
        raise LocalEntryNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for make in (create_model, timm.create_model):
        with pytest.raises(CheckpointError, match=r"haopt/dimsum-L2-imagenet256: .* local cache"):
            make("dimsum_l2", pretrained=True)
    with pytest.raises(CheckpointError, match=r"someone/model: .*model\.safetensors.* local cache"):
        DiMSUM.from_pretrained("someone/model")
