"""The DiffuSSM block: scans of full length, dense layers of a shortened one."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.blocks.map_block import MapBlock
from wavemamba.blocks.spatial import expect_scan
from wavemamba.checks import expect_size
from wavemamba.errors import ConfigError
from wavemamba.layers import AdaLN, LayerNorm, S4DMixer, gated_residual, modulate
from wavemamba.layers.mixers import expect_mixer
from wavemamba.layers.norm import plain_layer_norm
from wavemamba.layers.part_checks import expect_result
from wavemamba.scans import ScanOrder


class DiffuSSMBlock(MapBlock):
    """Hourglass around two scans: each token of the map is M neighbours in a row of the grid that is scanned.

        n_j = LN(x_j) * (1 + scale) + shift
        u_{M j + k} = s(W_up,k s(W_in n_j)),                         k = 0 .. M - 1
        y = [scan(u), scan backwards(u)],                            2 C channels
        v_j = [s(W_down,0 y_{M j}), ..., s(W_down,M-1 y_{M j + M - 1})],   2 C / M channels each
        x + gate * W_out (s(W_value v) * s(W_gate n))

    `s` is GELU (tanh), LN has no weight and bias, eps 1e-6, and the three vectors are `Linear(SiLU(cond))`. With
    `cond_dim=None` LN has weight and bias, and there is no modulation.

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.
        shorten: M, a divisor of 2 C.
        scan: the order in which the (H, M W) grid is walked, or its name.
        mixer: a `wavemamba.layers.Mixer` of width C, called as `mixer(tokens, None, order=order)`; None:
            `S4DMixer(dim)`.
        backward: the same for the other direction; None: a copy of `mixer`, or another `S4DMixer(dim)`.
        channels_first: take and return (B, C, H, W).

    Raises:
        ConfigError: an option has an unknown name or a value out of range, or a mixer cannot be called as one.

    Source: Yan, Gu and Rush, "Diffusion models without attention", 2023, section 4.2.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int | None = None,
        *,
        shorten: int = 2,
        scan: str | ScanOrder = "raster",
        mixer: nn.Module | None = None,
        backward: nn.Module | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__(dim, cond_dim, channels_first=channels_first)
        expect_size("shorten", shorten)
        if 2 * dim % shorten:
            raise ConfigError(f"shorten: expected a divisor of 2 * dim = {2 * dim}, got {shorten}")
        self.shorten = shorten
        self.scan = expect_scan(scan)
        self.scan_back = self.scan.reversed()
        self.norm = LayerNorm(dim, eps=1e-6) if cond_dim is None else None
        self.modulation = None if cond_dim is None else AdaLN(dim, cond_dim)
        self.lift = nn.Linear(dim, 2 * dim)
        self.up = nn.Linear(2 * dim, shorten * dim)
        self.mixer = S4DMixer(dim) if mixer is None else expect_mixer(mixer)
        if backward is None:
            backward = S4DMixer(dim) if mixer is None else copy.deepcopy(self.mixer)
        self.mixer_back = expect_mixer(backward, "backward")
        self.down = nn.ModuleList(nn.Linear(2 * dim, 2 * dim // shorten) for _ in range(shorten))
        self.value = nn.Linear(2 * dim, dim)
        self.gate = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Mix the tokens.

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
        if self.modulation is None or cond is None:
            assert self.norm is not None
            return self.leave(gated_residual(x, self._hourglass(self.norm(x)), None))
        (step,) = self.modulation(cond)
        update = self._hourglass(modulate(plain_layer_norm(x), step.shift, step.scale))
        return self.leave(gated_residual(x, update, step.gate))

    def _hourglass(self, n: Tensor) -> Tensor:
        height, width = n.shape[1:3]
        long = _gelu(self.up(_gelu(self.lift(n)))).unflatten(-1, (self.shorten, self.dim))  # (B, H, W, M, C)
        u = long.flatten(1, 3)
        grid = (height, width * self.shorten)
        y = torch.cat([self._scan(u, grid, back) for back in (False, True)], dim=-1).unflatten(1, long.shape[1:4])
        v = torch.cat([_gelu(layer(y[..., k, :])) for k, layer in enumerate(self.down)], dim=-1)
        update: Tensor = self.proj(_gelu(self.value(v)) * _gelu(self.gate(n)))
        return update

    def _scan(self, u: Tensor, grid: tuple[int, int], back: bool) -> Tensor:
        scan, mixer = (self.scan_back, self.mixer_back) if back else (self.scan, self.mixer)
        mixed = mixer(u, None, order=scan.order_for(*grid, device=u.device))
        return expect_result("backward" if back else "mixer", mixed, tuple(u.shape), "(B, L, C)")

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"{super().extra_repr()}, shorten={self.shorten}, scan={self.scan.name!r}"


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")
