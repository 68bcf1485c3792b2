"""The S4D mixer: a diagonal state space that is the same at every step, as a convolution by FFT."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wavemamba.checks import expect_floating, expect_shape, expect_size
from wavemamba.dtypes import accumulation_dtype, autocast_off
from wavemamba.errors import ConfigError, ShapeError
from wavemamba.layers.mixers.protocol import resolve_order
from wavemamba.layers.weight_decay import UndecayedParameters
from wavemamba.scans import ScanOrder, expect_permutation, invert_permutation
from wavemamba.sizes import cut, not_one

_DT_MIN, _DT_MAX = 1e-3, 1e-1
_STRIDE = 32  # powers of the decay up to here, times those of its 32nd power, are all powers


class S4DMixer(UndecayedParameters):
    """Diagonal state space of N states a channel, (B, L, C) -> (B, L, C).

        h_l = exp(dt A) h_{l-1} + ((exp(dt A) - 1) / A) x_l
        y_l = 2 Re(sum over n of C_n h_{l,n}) + D x_l

    with N / 2 complex states, the others being their conjugates. `A = -exp(A_log) + i A_imag` starts as
    `-1/2 + i pi n`, and `dt = exp(log_dt)` log-uniform in [1e-3, 1e-1]. No parameter depends on the input, so that the
    scan is a convolution, computed by FFT in float32 (float64 for float64 inputs): its time grows as `L log L`.

    Args:
        dim: width C.
        d_state: state size N of a channel, even.

    Raises:
        ConfigError: a size is no int >= 1, or `d_state` is odd.

    Source: Gu et al., "On the parameterization and initialization of diagonal state space models", 2022 (S4D-Lin).
    """

    undecayed = ("log_dt", "A_log", "A_imag", "D")
    takes_condition = False

    def __init__(self, dim: int, *, d_state: int = 64) -> None:
        super().__init__()
        expect_size("dim", dim)
        expect_size("d_state", d_state)
        if d_state % 2:
            raise ConfigError(f"d_state: expected an even number, as states come in conjugate pairs, got {d_state}")
        self.dim, self.d_state = dim, d_state
        half = d_state // 2
        self.log_dt = nn.Parameter(torch.empty(dim))
        self.A_log = nn.Parameter(torch.empty(dim, half))
        self.A_imag = nn.Parameter(torch.empty(dim, half))
        self.C = nn.Parameter(torch.empty(dim, half, 2))
        self.D = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def forward(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        *,
        order: Tensor | ScanOrder | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Mix the tokens.

        Args:
            x: (B, L, C).
            cond: None; the mixer takes no condition.
            order: the row that each step reads and writes: a permutation (L,) int64, or a `ScanOrder`, which needs
                `grid`; None: in turn.
            grid: (H, W) with `H * W = L`, for a `ScanOrder`.

        Returns:
            (B, L, C).

        Raises:
            ShapeError: a size does not fit, the grid is missing, or there is a condition.
        """
        expect_shape("x", x, (None, None, self.dim), "(B, L, C)", "channels come last")
        expect_floating("x", x)
        if cond is not None:
            raise ShapeError(f"cond: expected None, as S4DMixer takes none, got {tuple(cond.shape)}; leave it out")
        length = x.shape[1]
        rows = resolve_order(order, grid, length, x.device)
        if rows is not None:
            rows = expect_permutation(rows, length)
        wide = accumulation_dtype(x.dtype)
        with autocast_off(x.device):
            u = (x if rows is None else x.index_select(1, rows)).to(wide).mT  # (B, C, L)
            y = _convolve(u, self._impulse_response(length, wide)) + self.D.to(wide)[:, None] * u
        y = y.mT.to(x.dtype)
        return y if rows is None else y.index_select(1, invert_permutation(rows))

    def reset_parameters(self) -> None:
        """`A = -1/2 + i pi n`, `dt` log-uniform in [1e-3, 1e-1], normal `C` (variance 1/2 each part) and `D`."""
        if self.A_log.is_meta:
            return  # there are no values yet
        with torch.no_grad():
            nn.init.uniform_(self.log_dt, math.log(_DT_MIN), math.log(_DT_MAX))
            self.A_log.fill_(math.log(0.5))
            steps = torch.arange(self.d_state // 2, dtype=self.A_imag.dtype, device=self.A_imag.device)
            self.A_imag.copy_((math.pi * steps).expand_as(self.A_imag))
            nn.init.normal_(self.C, std=0.5**0.5)
            nn.init.normal_(self.D)

    def extra_repr(self) -> str:
        """The sizes, for `print`."""
        return f"{self.dim}, d_state={self.d_state}"

    def _impulse_response(self, length: int, wide: torch.dtype) -> Tensor:
        """`K_l = 2 Re(sum over n of C_n ((exp(dt A_n) - 1) / A_n) exp(dt A_n l))`, (C, L).

        With `l = 32 a + b`, `exp(dt A l)` is a product of a power for a and one for b, and the sum over n a product of
        matrices: L / 32 + 32 exponentials a state stand for L.
        """
        dt = self.log_dt.to(wide).exp()[:, None]
        real, imag = -self.A_log.to(wide).exp(), self.A_imag.to(wide)
        C_real, C_imag = self.C.to(wide).unbind(-1)
        decay, phase = dt * real, dt * imag
        # exp(dt A) - 1, without the difference of two numbers close to one
        step_real = torch.expm1(decay) * phase.cos() - 2 * (phase / 2).sin().square()
        step_imag = decay.exp() * phase.sin()
        norm = real.square() + imag.square()
        held_real = (step_real * real + step_imag * imag) / norm
        held_imag = (step_imag * real - step_real * imag) / norm
        gain_real = C_real * held_real - C_imag * held_imag
        gain_imag = C_real * held_imag + C_imag * held_real
        count = not_one((length + _STRIDE - 1) // _STRIDE)
        strides = _STRIDE * torch.arange(count, device=dt.device, dtype=wide)[:, None]
        size, angle = (strides * decay[:, None]).exp(), strides * phase[:, None]  # (C, L / 32, N / 2)
        far_real, far_imag = size * angle.cos(), size * angle.sin()
        far = torch.cat(
            [
                gain_real[:, None] * far_real - gain_imag[:, None] * far_imag,
                -gain_real[:, None] * far_imag - gain_imag[:, None] * far_real,
            ],
            dim=-1,
        )
        steps = torch.arange(_STRIDE, device=dt.device, dtype=wide)
        size, angle = (decay[..., None] * steps).exp(), phase[..., None] * steps  # (C, N / 2, 32)
        near = torch.cat([size * angle.cos(), size * angle.sin()], dim=1)
        return 2 * cut((far @ near).flatten(1), 1, length)


def _convolve(u: Tensor, response: Tensor) -> Tensor:
    """`y_l = sum over j <= l of response_j u_{l-j}`, (B, C, L) with (C, L), by FFT."""
    if u.shape[0] == 0:
        return u * response  # as empty, and with the same gradients; an FFT of nothing raises
    length = u.shape[-1]
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(response, n=2 * length)
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length]
