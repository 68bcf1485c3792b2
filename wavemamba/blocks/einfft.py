"""A branch that mixes the channels of every frequency."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.blocks.map_block import MapBlock
from wavemamba.checks import expect_number
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.layers.weight_decay import UndecayedParameters


class EinFFT(MapBlock, UndecayedParameters):
    """A complex MLP on the spectrum of the tokens, block by block of the channels.

    The map is read as a sequence of L = H W tokens, row-major, of `blocks` groups of C / blocks channels. With F the
    orthonormal discrete Fourier transform over tokens and groups, and complex weights W and b for each group:

        z = W_2 relu(W_1 F(x) + b_1) + b_2,    x' = real part of F^-1(shrink(z))

    where relu and shrink act on real and imaginary parts alone, and `shrink(a) = sign(a) max(|a| - threshold, 0)`.
    The condition has no effect: that of the block around the branch has.

    Args:
        dim: width C, a multiple of `blocks`.
        cond_dim: width of the condition that the branch is called with, or None.
        blocks: groups of channels.
        threshold: parts of the new spectrum up to this size become zero, >= 0.
        residual: return `x + x'`, for a block whose only branch this is.
        channels_first: take and return (B, C, H, W).

    Raises:
        ConfigError: an option is out of range.

    Source: Patro and Agneeswaran, "SiMBA", 2024, arXiv 2403.15360, section 3.
    """

    undecayed = ("bias1", "bias2")

    def __init__(
        self,
        dim: int,
        cond_dim: int | None = None,
        *,
        blocks: int = 4,
        threshold: float = 0.01,
        residual: bool = False,
        channels_first: bool = False,
    ) -> None:
        super().__init__(dim, cond_dim, channels_first=channels_first)
        if not isinstance(blocks, int) or isinstance(blocks, bool) or blocks < 1 or dim % blocks:
            raise ConfigError(f"blocks: expected a divisor of the width {dim}, got {blocks!r}; 1 is one")
        self.blocks, self.residual = blocks, residual
        self.threshold = expect_number("threshold", threshold, least=0)
        width = dim // blocks
        self.weight1, self.weight2 = (nn.Parameter(torch.empty(2, blocks, width, width)) for _ in range(2))
        self.bias1, self.bias2 = (nn.Parameter(torch.empty(2, blocks, width)) for _ in range(2))
        self.reset_parameters()

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Mix the channels of every frequency.

        Args:
            x: (B, H, W, C), any H, W >= 1.
            cond: (B, cond_dim), or None where the block was built without.

        Returns:
            (B, H, W, C).

        Raises:
            ShapeError: a size does not fit, or the condition is missing or unexpected.
        """
        x = self.enter(x)
        self.check_cond(cond, x.shape[0])
        grid = (x.shape[1], x.shape[2])
        groups = x.flatten(1, 2).unflatten(-1, (self.blocks, self.dim // self.blocks))  # (B, L, blocks, C / blocks)
        spectrum = _over_tokens_and_groups(torch.fft.fft2, groups.to(accumulation_dtype(x.dtype)))
        z = torch.cat([spectrum.real, spectrum.imag], dim=-1)
        z = F.relu(_complex_linear(z, self.weight1, self.bias1))
        z = _complex_linear(z, self.weight2, self.bias2).to(accumulation_dtype(x.dtype))
        real, imaginary = F.softshrink(z, self.threshold).chunk(2, dim=-1)
        mixed = _over_tokens_and_groups(torch.fft.ifft2, torch.complex(real, imaginary)).real
        mixed = mixed.flatten(2).unflatten(1, grid).to(x.dtype)
        return self.leave(x + mixed if self.residual else mixed)

    def reset_parameters(self) -> None:
        """Normal(0.02)."""
        for parameter in (self.weight1, self.weight2, self.bias1, self.bias2):
            nn.init.normal_(parameter, std=0.02)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        residual = ", residual=True" if self.residual else ""
        return f"{super().extra_repr()}, blocks={self.blocks}, threshold={self.threshold}{residual}"


def _over_tokens_and_groups(transform: Callable[..., Tensor], z: Tensor) -> Tensor:
    if z.shape[0] == 0:
        return z + 0j  # PyTorch's transforms on the CPU refuse an empty batch
    return transform(z, dim=(1, 2), norm="ortho")


def _complex_linear(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`W z + b` group by group, real parts and imaginary parts side by side: (B, L, blocks, 2 D) to the same shape."""
    real, imaginary = weight.to(z.dtype).unbind(0)  # (blocks, D, D) each
    product = torch.cat([torch.cat([real, imaginary], dim=-1), torch.cat([-imaginary, real], dim=-1)], dim=-2)
    y = torch.einsum("blgd,gde->blge", z, product)
    return y + torch.cat([bias[0], bias[1]], dim=-1)
