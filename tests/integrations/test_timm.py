"""What timm does with its own models it does with these, whichever library is imported first."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg, save_for_hf

import wavemamba
from wavemamba import CheckpointError, ConfigError, create_model
from wavemamba.models import DiffusionConfig, DiffusionModel, register_model

TINY = {"img_size": 8, "depth": 1, "dim": 32, "num_classes": 3}
# What no import of the library may bring along: each costs more than the library itself.
HEAVY = (
    "timm", "torchvision", "torch._dynamo", "torch._inductor", "huggingface_hub", "safetensors",
    "numba", "triton", "mamba_ssm", "causal_conv1d", "diffusers", "accelerate", "PIL", "yaml", "matplotlib", "scipy",
)  # fmt: skip


def in_a_new_process(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_library_first(tmp_path):
    """It imports nothing heavy, and timm, once imported, has the models."""
    code = f"""
import sys, torch
before = set(sys.modules)
import wavemamba
new = set(sys.modules) - before
print(sorted(name for name in {HEAVY!r} if name in new))
assert not {{"wavemamba.data", "wavemamba.models.dit.model", "wavemamba.models.zigma.model"}} & new
wavemamba.create_model("dimsum_tiny", img_size=8, depth=1).save_pretrained({str(tmp_path)!r})
wavemamba.DiMSUM.from_pretrained({str(tmp_path)!r})
assert "torch._dynamo" not in sys.modules and "huggingface_hub" not in sys.modules  # nor does loading
import timm
assert timm.is_model("dimsum_l2") and timm.list_models("dimsum_l4*") == ["dimsum_l4", "dimsum_l4_d20"]
assert "exec_module" not in vars(timm.models.__spec__.loader)
timm.create_model("dimsum_tiny", img_size=8, depth=1)
"""
    assert in_a_new_process(code) == "[]"


def test_importing_timm_first():
    code = "import timm, wavemamba; timm.create_model('dimsum_tiny', img_size=8, depth=1); print('made')"
    assert in_a_new_process(code) == "made"


def saved(tmp_path, **options):
    model = create_model("dimsum_tiny", **{**TINY, **options})
    torch.nn.init.normal_(model.pos_embed)
    torch.save({"ema": model.state_dict()}, tmp_path / "weights.pt")
    return model, tmp_path / "weights.pt"


def test_the_overlay_says_where_the_weights_are(tmp_path):
    model, file = saved(tmp_path)
    for cfg in ({"file": str(file)}, {"state_dict": model.state_dict()}):
        loaded = timm.create_model("dimsum_tiny", pretrained=True, pretrained_cfg_overlay=cfg, **TINY)
        assert torch.equal(loaded.pos_embed, model.pos_embed)
        assert not loaded.training
    loaded = timm.create_model(
        "dimsum_tiny", pretrained=True, pretrained_cfg={"file": str(file), "notes": ("a",)}, **TINY
    )
    assert torch.equal(loaded.pos_embed, model.pos_embed)
    assert loaded.pretrained_cfg["notes"] == ("a",)
    assert loaded.pretrained_cfg["input_size"] == (4, 8, 8)


def test_hub_and_cache_are_passed_on(tmp_path, monkeypatch):
    model, file = saved(tmp_path)
    asked = []

    def download(repository, name, **options):
        asked.append((repository, name, options))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    options = {"pretrained": True, "cache_dir": "/somewhere", **TINY}
    overlay = {"hf_hub_id": "me/mine@abc", "hf_hub_filename": "weights.pt"}
    loaded = timm.create_model("dimsum_tiny", pretrained_cfg_overlay=overlay, **options)
    assert torch.equal(loaded.pos_embed, model.pos_embed)
    assert asked.pop() == ("me/mine", "weights.pt", {"revision": "abc", "cache_dir": "/somewhere"})
    timm.create_model("dimsum_l2", **{**options, "attention_every": 2, "attention_heads": 16, "fusion_heads": 8})
    assert asked.pop()[::2] == ("haopt/dimsum-L2-imagenet256", {"revision": None, "cache_dir": "/somewhere"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": True, "pretrained_cfg_overlay": {"url": "https://x"}}, "url: expected file"),
        ({"pretrained_cfg": "in1k"}, "no tags"),
        ({"drop_rate": 0.1}, "drop_rate: expected 0.0"),
        ({"features_only": True}, "features_only: expected False"),
        ({"nmu_classes": 3}, "num_classes"),
    ],
)
def test_what_cannot_be_done_is_said(options, message):
    with pytest.raises(ConfigError, match=message):
        timm.create_model("dimsum_tiny", **{**TINY, **options})


def test_what_timm_passes_to_every_model_is_accepted():
    neutral = {"drop_rate": 0.0, "drop_path_rate": 0.1, "drop_block_rate": None, "global_pool": None}
    model = timm.create_model("dimsum_tiny", scriptable=False, features_only=False, **neutral, **TINY)
    assert model.config.drop_path_rate == 0.1


@pytest.mark.parametrize(("channels", "mean", "std"), [(3, 0.5, 0.5), (4, 0.0, 1.0)])
def test_the_data_configuration_is_true(channels, mean, std):
    data = resolve_model_data_config(create_model("dimsum_tiny", **TINY, in_chans=channels))
    assert data["input_size"] == (channels, 8, 8)
    assert data["mean"] == (mean,) * channels
    assert data["std"] == (std,) * channels
    assert data["crop_pct"] == 1.0
    model = create_model("dimsum_tiny", **TINY)
    model.set_input_size((12, 16))
    assert resolve_model_data_config(model)["input_size"] == (4, 12, 16)


def test_registered_configurations():
    cfg = get_pretrained_cfg("dimsum_l2")
    assert cfg.hf_hub_id == "haopt/dimsum-L2-imagenet256"
    assert cfg.input_size == (4, 32, 32)
    assert cfg.num_classes == 1000
    assert timm.list_models("dimsum*", pretrained=True) == ["dimsum_l2"]
    assert get_pretrained_cfg("dimsum_xl2").input_size == (4, 32, 32)


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_that_timm_saved(safe, tmp_path):
    model = timm.create_model("dimsum_tiny", **TINY)
    torch.nn.init.normal_(model.pos_embed)
    save_for_hf(model, tmp_path, safe_serialization=safe)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert loaded.config == model.config
    assert torch.equal(loaded.pos_embed, model.pos_embed)
    with pytest.raises(CheckpointError, match=r"got another's|missing"):
        wavemamba.DiMSUM.from_pretrained(tmp_path)


class Plain(DiffusionModel):
    """One convolution."""

    family = "plain_for_timm"
    config_class = DiffusionConfig

    def __init__(self, config):
        super().__init__(config)
        self.conv = torch.nn.Conv2d(config.in_chans, config.in_chans, 1)

    def forward(self, x, t, y=None):
        return self.conv(x)


def test_an_own_family_is_known_to_timm_and_a_name_of_timms_is_not_taken():
    register_model(Plain)
    assert isinstance(timm.create_model("plain_for_timm", in_chans=2), Plain)
    assert get_pretrained_cfg("plain_for_timm").input_size == (4, 32, 32)

    def resnet50():
        return Plain(DiffusionConfig())

    with pytest.raises(ConfigError, match="timm does not have"):
        register_model(resnet50)
    assert "resnet50" not in wavemamba.list_models()  # nothing is left half done
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_model(Plain)
