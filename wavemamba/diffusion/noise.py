"""Random streams: one per sample, so that a sample does not depend on the batch or the device it is drawn in."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from wavemamba.checks import expect_count
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.seeds import generator_for

RandomSource = torch.Generator | int | Sequence[torch.Generator | int] | None
"""None: the global generator of the device. A generator or a seed: it deals one seed to each sample, in order. A
sequence: one generator or one seed per sample."""


class Streams:
    """Normal and sign noise for a batch, every sample from its own stream.

    Noise is drawn on the CPU in float32 and then moved and cast, so that the same seeds give the same noise on every
    device and in every dtype. With `source=None` it is drawn on the device from torch's global generator instead:
    fastest, reproducible only as a whole.

    Args:
        source: where randomness comes from, see `RandomSource`.
        batch: number of samples.
        purpose: seeds used for different purposes give unrelated streams; generators given per sample are used as
            they are, and advance.

    Raises:
        ShapeError: a sequence of another length than `batch`.
        ConfigError: a generator that is not on the CPU.
    """

    def __init__(self, source: RandomSource, batch: int, purpose: str) -> None:
        self.batch = batch
        self._generators: list[torch.Generator] | None = None
        if source is None:
            return
        if not isinstance(source, torch.Generator) and (isinstance(source, str) or not _several(source)):
            source = torch.Generator("cpu").manual_seed(_seed(source))
        if isinstance(source, torch.Generator):
            # One by one: sample k gets the k-th number whatever the size of the batch.
            where = source.device
            dealt = [
                torch.randint(2**62, (1,), generator=source, device=where, dtype=torch.int64) for _ in range(batch)
            ]
            source = torch.cat(dealt).tolist() if dealt else []
        each: list[torch.Generator | int] = list(source)  # type: ignore[arg-type]  # a seed was replaced above
        if len(each) != batch:
            raise ShapeError(f"generator: expected one per sample ({batch}), got {len(each)}")
        self._generators = [_as_generator(one, purpose) for one in each]

    def normal(self, shape: Sequence[int], *, device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
        """Standard normal noise, (batch, *shape)."""
        if self._generators is None:
            return torch.randn(self.batch, *shape, device=device or "cpu", dtype=dtype)
        draws = [torch.randn(tuple(shape), generator=g, device="cpu", dtype=torch.float32) for g in self._generators]
        return _move(draws, shape, device, dtype)

    def signs(self, shape: Sequence[int], *, device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
        """Rademacher noise, -1 or 1 with equal probability, (batch, *shape)."""
        if self._generators is None:
            bits = torch.randint(2, (self.batch, *shape), device=device or "cpu", dtype=torch.int64)
            return bits.to(dtype) * 2 - 1
        draws = [torch.randint(2, tuple(shape), generator=g, device="cpu", dtype=torch.int64) for g in self._generators]
        return _move(draws, shape, device, dtype) * 2 - 1


def sample_noise(
    shape: Sequence[int],
    *,
    seeds: Sequence[int] | None = None,
    generator: RandomSource = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise to start a sampler from.

    Args:
        shape: (B, ...).
        seeds: one seed per sample; sample `i` depends on `seeds[i]` alone, on every device.
        generator: see `RandomSource`; not together with `seeds`.
        device: where the noise goes; None: the CPU.
        dtype: its dtype; the draw itself is float32.

    Returns:
        `shape`, from N(0, I).

    Raises:
        ConfigError: both `seeds` and `generator`.
        ShapeError: not one seed per sample.
    """
    if seeds is not None and generator is not None:
        raise ConfigError("sample_noise: expected seeds or generator, got both; drop one")
    if not hasattr(shape, "__iter__") or not len(shape):
        raise ShapeError(f"shape: expected (B, ...), got {shape!r}")
    sizes = [expect_count("shape", side) for side in shape]
    if not dtype.is_floating_point:
        raise ShapeError(f"dtype: expected a floating dtype, got {dtype}")
    if seeds is not None and not _several(seeds):
        raise ShapeError(f"seeds: expected one for each of {sizes[0]} samples, got {seeds!r}")
    source = generator if seeds is None else [_seed(seed) for seed in seeds]
    return Streams(source, sizes[0], "start").normal(sizes[1:], device=device, dtype=dtype)


def _several(source: object) -> bool:
    # Arrays and tensors of one seed are iterable by type, and not by value.
    return hasattr(source, "__iter__") and getattr(source, "ndim", 1) > 0


def _as_generator(one: torch.Generator | int, purpose: str) -> torch.Generator:
    if isinstance(one, torch.Generator):
        if one.device.type != "cpu":
            raise ConfigError(
                f"generator: expected one CPU generator per sample, got one on {one.device}; "
                "CPU streams are what makes a sample the same on every device"
            )
        return one
    return generator_for(_seed(one), purpose)


def _seed(one: object) -> int:
    try:
        seed = None if isinstance(one, bool) else operator.index(one)  # type: ignore[arg-type]  # refused below
    except TypeError:
        seed = None
    if seed is None or not -(2**63) <= seed < 2**64:
        raise ConfigError(f"generator: expected CPU generators, or integers of 64 bits as seeds, got {one!r}")
    return seed


def _move(rows: list[Tensor], shape: Sequence[int], device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
    noise = torch.stack(rows) if rows else torch.empty(0, *shape, device="cpu", dtype=torch.float32)
    if device is not None and torch.device(device).type == "cuda":
        # From pinned memory the copy does not wait for the kernels in flight.
        noise = noise.pin_memory()
    return noise.to(device=device or "cpu", dtype=dtype, non_blocking=True)
