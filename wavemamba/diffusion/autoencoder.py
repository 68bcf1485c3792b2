"""Images to latents and back through `diffusers.AutoencoderKL`, scaled as its own config says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
    """A frozen autoencoder: `latent = (z - shift) * scale` and back.

    Args:
        model: a `diffusers.AutoencoderKL`, or whatever has its `encode`, `decode` and `config`; put into evaluation
            mode, its parameters frozen.
        scaling_factor: `scale`; None: the model's config.
        shift_factor: `shift`; None: the model's config, 0 where that has none.

    Raises:
        ConfigError: there is no scaling factor, or it is not positive.
    """

    def __init__(
        self, model: nn.Module, *, scaling_factor: float | None = None, shift_factor: float | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        config: Any = model.config
        scale = getattr(config, "scaling_factor", None) if scaling_factor is None else scaling_factor
        shift = getattr(config, "shift_factor", None) if shift_factor is None else shift_factor
        if scale is None or not scale > 0:
            raise ConfigError(f"scaling_factor: expected > 0, got {scale}; pass scaling_factor=, 0.18215 for sd-vae")
        self.scaling_factor = float(scale)
        self.shift_factor = float(shift or 0.0)
        self.latent_channels = int(config.latent_channels)
        self.downsampling = 2 ** (len(config.block_out_channels) - 1)

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
            CheckpointError: nothing can be loaded from there.
        """
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise BackendUnavailable(
                f"Autoencoder: expected diffusers to be installed ({error}); pip install 'wavemamba[train]'"
            ) from error
        load: Any = AutoencoderKL.from_pretrained
        try:
            model = load(str(source), use_safetensors=True, torch_dtype=dtype, **options)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{source}: expected a folder or hub id with an AutoencoderKL in safetensors, got: {error}"
            ) from error
        return cls(model.to(device), scaling_factor=scaling_factor, shift_factor=shift_factor)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.model.parameters()).dtype

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
        return LatentPosterior((z.mean - self.shift_factor) * self.scaling_factor, z.std * self.scaling_factor)

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
        images: Tensor = decode(latents.to(self.device, self.dtype) / self.scaling_factor + self.shift_factor).sample
        return images
