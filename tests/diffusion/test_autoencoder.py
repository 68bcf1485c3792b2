from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from wavemamba import BackendUnavailable, CheckpointError, ConfigError, ShapeError
from wavemamba.diffusion import Autoencoder

diffusers = pytest.importorskip("diffusers")


def tiny(**config) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            norm_num_groups=4,
            sample_size=16,
            **config,
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("vae")
    tiny(scaling_factor=0.31, shift_factor=0.2).save_pretrained(path)
    return str(path)


IMAGES = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_local_folder_with_the_factors_of_its_config(folder: str) -> None:
    autoencoder = Autoencoder.from_pretrained(folder)
    assert (autoencoder.scaling_factor, autoencoder.shift_factor) == (0.31, 0.2)
    assert autoencoder.latent_shape(16, 24) == (4, 4, 6)
    raw = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    with torch.no_grad():
        z = raw.encode(IMAGES).latent_dist
        expected = raw.decode(z.mean).sample
    posterior = autoencoder.posterior(IMAGES)
    torch.testing.assert_close(posterior.mean, (z.mean - 0.2) * 0.31)
    torch.testing.assert_close(posterior.std, z.std * 0.31)
    torch.testing.assert_close(autoencoder.decode(posterior.mean), expected, rtol=1e-4, atol=1e-5)


def test_factors_can_be_given_and_have_defaults(folder: str) -> None:
    assert Autoencoder.from_pretrained(folder, scaling_factor=0.5).scaling_factor == 0.5
    plain = Autoencoder(tiny())
    assert (plain.scaling_factor, plain.shift_factor) == (0.18215, 0.0)
    with pytest.raises(ConfigError, match="scaling_factor"):
        Autoencoder(tiny(), scaling_factor=0.0)


def test_mean_and_deviation_of_each_channel_are_used(tmp_path) -> None:
    mean, std = [0.1, -0.2, 0.3, 0.4], [0.5, 2.0, 3.0, 0.25]
    raw = tiny(scaling_factor=0.7, latents_mean=mean, latents_std=std).eval()
    raw.save_pretrained(tmp_path)
    autoencoder = Autoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        z = raw.encode(IMAGES).latent_dist
        shown = raw.decode(z.mean).sample
    by_channel = [torch.tensor(values).view(1, 4, 1, 1) for values in (mean, std)]
    posterior = autoencoder.posterior(IMAGES)
    torch.testing.assert_close(posterior.mean, (z.mean - by_channel[0]) * 0.7 / by_channel[1])
    torch.testing.assert_close(posterior.std, z.std * 0.7 / by_channel[1])
    torch.testing.assert_close(autoencoder.decode(posterior.mean), shown, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"latents_mean": [0.0] * 4}, "both or neither"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, "latents_mean: expected 4 numbers"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]}, "latents_std"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1}, "shift_factor"),
        ({"latents_mean": 0.0, "latents_std": 1.0}, "latents_mean: expected 4 numbers"),
        ({"scaling_factor": float("nan")}, "scaling_factor"),
    ],
)
def test_a_config_that_makes_no_sense_is_told(config: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Autoencoder(tiny(**config))


def test_sampling_is_reproducible_sample_by_sample(folder: str) -> None:
    autoencoder = Autoencoder.from_pretrained(folder)
    together = autoencoder.encode(IMAGES, generator=[5, 6, 7])
    assert together.shape == (3, 4, 4, 6)
    torch.testing.assert_close(autoencoder.encode(IMAGES[1:2], generator=[6]), together[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.equal(autoencoder.encode(IMAGES, generator=[8, 9, 10]), together)
    posterior = autoencoder.posterior(IMAGES)
    normal = (together - posterior.mean) / posterior.std
    assert abs(normal.mean()) < 0.3
    assert 0.7 < normal.std() < 1.3


def test_weights_are_frozen_and_follow_dtype(folder: str) -> None:
    autoencoder = Autoencoder.from_pretrained(folder, dtype=torch.bfloat16)
    assert autoencoder.dtype == torch.bfloat16
    assert not autoencoder.model.training
    assert not any(p.requires_grad for p in autoencoder.model.parameters())
    latents = autoencoder.encode(IMAGES, generator=0)
    assert latents.dtype == torch.bfloat16
    assert autoencoder.to(dtype=torch.float32).decode(latents).dtype == torch.float32


def test_shapes_are_checked(folder: str) -> None:
    autoencoder = Autoencoder.from_pretrained(folder)
    with pytest.raises(ShapeError, match="divisible by 4"):
        autoencoder.encode(IMAGES[..., :15])
    with pytest.raises(ShapeError, match="images"):
        autoencoder.encode(IMAGES[:, :1])
    with pytest.raises(ShapeError, match="latents"):
        autoencoder.decode(torch.zeros(1, 3, 4, 4))


def test_missing_weights_and_pickles_are_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="safetensors"):
        Autoencoder.from_pretrained(tmp_path, local_files_only=True)
    tiny().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(CheckpointError, match="safetensors"):
        Autoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("decoder.conv_in.weight"), r"missing: decoder\.conv_in\.weight"),
        (lambda state: state.update(more=torch.zeros(2)), "not of this model: more"),
        (lambda state: state["decoder.conv_in.weight"].fill_(torch.nan), r"NaN or infinite: decoder\.conv_in\.weight"),
        (lambda state: state.update({"decoder.conv_in.weight": torch.zeros(3, 4, 3, 3)}), "expected shape"),
    ],
    ids=["missing", "left over", "NaN", "misshapen"],
)
def test_weights_that_do_not_fit_are_never_drawn_at_random(tmp_path, change, told) -> None:
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=told):
        Autoencoder.from_pretrained(tmp_path)


def test_missing_diffusers_names_the_extra(folder: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BackendUnavailable, match=r"wavemamba\[train\]"):
        Autoencoder.from_pretrained(folder)
