"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn

from wavemamba.errors import ConfigError


class DropPath(nn.Module):
    """In training, samples are zeroed with probability `rate`, and those kept are divided by `1 - rate`.

    Args:
        rate: probability in [0, 1).

    Raises:
        ConfigError: the rate is out of range.

    Source: Huang et al., "Deep networks with stochastic depth", 2016.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ConfigError(f"drop_path: expected a probability in [0, 1), got {rate!r}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of (B, ...)."""
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        kept = x.new_empty((x.shape[0], *(1 for _ in range(x.dim() - 1)))).bernoulli_(keep)
        return x * kept.div_(keep)

    def extra_repr(self) -> str:
        """The rate, for `print`."""
        return f"rate={self.rate}"
