"""Gaussian data, whose velocity, score and noise are known exactly on every path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from wavemamba.diffusion import Path
from wavemamba.diffusion.paths import broadcast_time


@dataclass
class Gaussian:
    """Data `x1 ~ N(mean, std^2)`, element by element; models of what a perfect network would predict."""

    path: Path
    mean: float = 0.7
    std: float = 0.4

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of `x_t`."""
        a, s = self.path.alpha(t), self.path.sigma(t)
        return a * self.mean, a**2 * self.std**2 + s**2

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        mean, variance = self.moments(broadcast_time(t, x))
        return -(x - mean) / variance

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.path.sigma(broadcast_time(t, x)) * self.score(x, t)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        time = broadcast_time(t, x)
        mean, variance = self.moments(time)
        a, da = self.path.alpha(time), self.path.alpha_rate(time)
        s, ds = self.path.sigma(time), self.path.sigma_rate(time)
        return da * self.mean + (a * da * self.std**2 + s * ds) / variance * (x - mean)

    def flow(self, x0: Tensor, start: float, end: float) -> Tensor:
        """Where the probability flow carries `x0` from `start` to `end`: it keeps the standardised value."""
        times = torch.tensor([start, end], dtype=x0.dtype)
        mean, variance = self.moments(times)
        return mean[1] + (x0 - mean[0]) * (variance[1] / variance[0]).sqrt()


@pytest.fixture
def gaussian() -> type[Gaussian]:
    return Gaussian


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Thousands of operations on a few thousand numbers: on a busy machine threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
