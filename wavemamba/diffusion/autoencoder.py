"""Images to latents and back through `diffusers.AutoencoderKL`, scaled as its own config says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wavemamba.checks import expect_number
from wavemamba.diffusion.noise import RandomSource, Streams
from wavemamba.errors import BackendUnavailable, CheckpointError, ConfigError, ShapeError


class LatentPosterior(NamedTuple):
    """The encoder's diagonal Gaussian, in scaled latents."""

    mean: Tensor
    """(B, C, h, w)."""
    std: Tensor
    """(B, C, h, w), >= 0."""

    def sample(self, generator: RandomSource = None) -> Tensor:
        """`mean + std * n`, every sample with its own stream, see `RandomSource`."""
        streams = Streams(generator, len(self.mean), "latents")
        return self.mean + self.std * streams.normal(
            self.mean.shape[1:], device=self.mean.device, dtype=self.mean.dtype
        )


class Autoencoder:
    """A frozen autoencoder with latents of about unit variance: `latent = (z - shift) * scale` and back.

    Where the config of its model has `latents_mean` and `latents_std`, one number a channel, it is
    `latent = (z - mean) * scale / std`.

    Args:
        model: a `diffusers.AutoencoderKL`, or whatever has its `encode`, `decode` and `config`; put into evaluation
            mode, its parameters frozen.
        scaling_factor: `scale`; None: the model's config.
        shift_factor: `shift`; None: the model's config, 0 where that has none.

    Raises:
        ConfigError: there is no scaling factor, a number is out of range, or there are both a shift and a mean.
    """

    def __init__(
        self, model: nn.Module, *, scaling_factor: float | None = None, shift_factor: float | None = None
    ) -> None:
        config: Any = model.config
        scale = getattr(config, "scaling_factor", None) if scaling_factor is None else scaling_factor
        shift = getattr(config, "shift_factor", None) if shift_factor is None else shift_factor
        self.scaling_factor = expect_number("scaling_factor", scale, above=0, remedy="0.18215 is sd-vae's")
        self.shift_factor = expect_number("shift_factor", 0.0 if shift is None else shift)
        self.latent_channels = int(config.latent_channels)
        self.downsampling = 2 ** (len(config.block_out_channels) - 1)
        self.latents_mean = self._by_channel("latents_mean", getattr(config, "latents_mean", None))
        self.latents_std = self._by_channel("latents_std", getattr(config, "latents_std", None))
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ConfigError("latents_mean and latents_std: expected both or neither in the autoencoder's config")
        if self.latents_mean is not None and self.shift_factor:
            raise ConfigError(
                f"shift_factor: expected none beside latents_mean, got {self.shift_factor}; pass shift_factor=0 to use "
                "the mean alone"
            )
        self.model = model.eval().requires_grad_(False)

    def _by_channel(self, name: str, values: Any) -> tuple[float, ...] | None:
        if values is None:
            return None
        above = 0.0 if name == "latents_std" else -math.inf
        if not isinstance(values, Sequence):
            raise ConfigError(f"{name}: expected {self.latent_channels} numbers, one a channel, got {values!r}")
        numbers = tuple(expect_number(name, value, above=above) for value in values)
        if len(numbers) != self.latent_channels:
            raise ConfigError(f"{name}: expected {self.latent_channels} numbers, one a channel, got {len(numbers)}")
        return numbers

    def _shift_and_gain(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """What is taken from `z`, and what it is then multiplied by: (1, C, 1, 1) each, beside `like`."""
        shift = self.latents_mean or (self.shift_factor,) * self.latent_channels
        std = self.latents_std or (1.0,) * self.latent_channels
        gain = [self.scaling_factor / one for one in std]
        first, second = torch.tensor([shift, gain], dtype=like.dtype, device=like.device).view(2, 1, -1, 1, 1)
        return first, second

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        scaling_factor: float | None = None,
        shift_factor: float | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> Autoencoder:
        """Load from a local folder or a hub id, from safetensors only: no code is run from a file.

        Args:
            source: folder with `config.json` and weights, or a hub id such as `"stabilityai/sd-vae-ft-ema"`.
            scaling_factor: overrides the config.
            shift_factor: overrides the config.
            dtype: of the weights.
            device: of the weights.
            **options: for `AutoencoderKL.from_pretrained`: `subfolder`, `revision`, `local_files_only`, ...

        Raises:
            BackendUnavailable: diffusers is not installed.
            CheckpointError: nothing can be loaded from there, or weights are missing, left over, or no numbers.
        """
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise BackendUnavailable(
                f"Autoencoder: expected diffusers to be installed ({error}); pip install 'wavemamba[train]'"
            ) from error
        load: Any = AutoencoderKL.from_pretrained
        try:
            model, found = load(
                str(source), use_safetensors=True, torch_dtype=dtype, **options, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{source}: expected a folder or hub id with an AutoencoderKL in safetensors, got: {error}"
            ) from error
        # diffusers draws what is missing at random.
        wrong = {"missing": found["missing_keys"], "not of this model": found["unexpected_keys"]}
        there = {name: value for name, value in model.state_dict().items() if not value.is_meta}
        wrong["NaN or infinite"] = [name for name, value in there.items() if not value.isfinite().all()]
        if listed := "; ".join(f"{what}: {', '.join(sorted(names)[:5])}" for what, names in wrong.items() if names):
            raise CheckpointError(f"{source}: expected the weights of the AutoencoderKL of its config ({listed})")
        return cls(model.to(device), scaling_factor=scaling_factor, shift_factor=shift_factor)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.model.parameters() if not p.is_meta), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next((p.dtype for p in self.model.parameters()), torch.float32)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Autoencoder:
        """Move and cast the weights; returns itself."""
        self.model.to(device=device, dtype=dtype)
        return self

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image.

        Raises:
            ShapeError: a side is not divisible by the downsampling.
        """
        f = self.downsampling
        if height % f or width % f:
            raise ShapeError(f"image: expected sides divisible by {f}, got {height} x {width}; crop or resize it")
        return self.latent_channels, height // f, width // f

    @torch.no_grad()
    def posterior(self, images: Tensor) -> LatentPosterior:
        """Encode images to the mean and standard deviation of their scaled latents.

        Args:
            images: (B, 3, H, W), in [-1, 1]; moved to the weights' device and dtype.

        Raises:
            ShapeError: not images, or a side that is not divisible by the downsampling.
        """
        channels = int(self.model.config.in_channels)  # type: ignore[union-attr, arg-type]  # diffusers' frozen dict
        if images.ndim != 4 or images.shape[1] != channels:
            raise ShapeError(f"images: expected (B, {channels}, H, W) in [-1, 1], got {tuple(images.shape)}")
        self.latent_shape(images.shape[2], images.shape[3])
        encode: Any = self.model.encode
        z = encode(images.to(self.device, self.dtype)).latent_dist
        shift, gain = self._shift_and_gain(z.mean)
        return LatentPosterior((z.mean - shift) * gain, z.std * gain)

    def encode(self, images: Tensor, *, generator: RandomSource = None) -> Tensor:
        """Draw scaled latents of images: (B, 3, H, W) in [-1, 1] to (B, C, h, w); see `posterior`."""
        return self.posterior(images).sample(generator)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents: (B, C, h, w) to images (B, 3, H, W), about [-1, 1], not clipped.

        Raises:
            ShapeError: not latents of this autoencoder.
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ShapeError(f"latents: expected (B, {self.latent_channels}, h, w), got {tuple(latents.shape)}")
        decode: Any = self.model.decode
        scaled = latents.to(self.device, self.dtype)
        shift, gain = self._shift_and_gain(scaled)
        images: Tensor = decode(scaled / gain + shift).sample
        return images
