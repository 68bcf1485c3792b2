from __future__ import annotations

import pytest
import torch

from wavemamba import ConfigError, ShapeError
from wavemamba.diffusion import sample_noise
from wavemamba.diffusion.noise import Streams


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_sample_depends_on_its_seed_alone() -> None:
    together = sample_noise((4, 3, 5), seeds=[9, 2, 5, 2**63 + 1])
    assert torch.equal(sample_noise((2, 3, 5), seeds=[5, 9]), together[[2, 0]])
    assert together.unique().numel() == together.numel()


def test_one_generator_deals_the_same_samples_to_any_batch() -> None:
    large = sample_noise((70, 4), generator=generator(3))
    assert torch.equal(sample_noise((2, 4), generator=generator(3)), large[:2])
    assert torch.equal(sample_noise((2, 4), generator=3), large[:2])
    shared = generator(3)
    parts = [sample_noise((n, 4), generator=shared) for n in (1, 40, 29)]
    assert torch.equal(torch.cat(parts), large)


def test_generators_per_sample_advance() -> None:
    pair = [generator(1), generator(2)]
    first = sample_noise((2, 3), generator=pair)
    assert not torch.equal(first, sample_noise((2, 3), generator=pair))
    assert torch.equal(sample_noise((1, 3), generator=[generator(2)]), first[1:])


def test_the_same_seed_serves_several_purposes_without_repeating_itself() -> None:
    """Increments equal to the starting noise would be a silent error of every stochastic sampler."""
    draws = [Streams([5], 1, purpose).normal((4096,), device=None, dtype=torch.float64) for purpose in ("start", "sde")]
    correlation = torch.corrcoef(torch.cat(draws))[0, 1]
    assert abs(correlation) < 0.08


def test_dtypes_share_their_noise() -> None:
    single = sample_noise((2, 7), seeds=[0, 1])
    assert torch.equal(sample_noise((2, 7), seeds=[0, 1], dtype=torch.float64), single.double())
    assert torch.equal(sample_noise((2, 7), seeds=[0, 1], dtype=torch.bfloat16), single.bfloat16())


def test_noise_is_standard_normal_and_signs_are_fair() -> None:
    noise = sample_noise((64, 1024), seeds=range(64))
    torch.testing.assert_close(noise.mean().item(), 0.0, atol=0.02, rtol=0)
    torch.testing.assert_close(noise.var().item(), 1.0, atol=0.02, rtol=0)
    signs = Streams(0, 64, "probes").signs((1024,), device=None, dtype=torch.float32)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.02


def test_without_a_source_the_global_generator_is_used() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = sample_noise((2, 3))
        torch.manual_seed(0)
        assert torch.equal(sample_noise((2, 3)), first)


def test_sources_are_checked() -> None:
    with pytest.raises(ShapeError, match="one per sample"):
        sample_noise((3, 2), seeds=[0, 1])
    with pytest.raises(ConfigError, match="seeds or generator"):
        sample_noise((1, 2), seeds=[0], generator=generator())
