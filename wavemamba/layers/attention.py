"""Multi-head attention: of the tokens of a grid to each other, in several kinds, and to a context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.checks import expect_size
from wavemamba.dtypes import accumulation_dtype, autocast_off
from wavemamba.errors import ConfigError
from wavemamba.layers.part_checks import expect_part, expect_result
from wavemamba.ops.fused import Fused
from wavemamba.sizes import cut, holds_always

AttentionKind = Literal["full", "window", "linear_attention"]
_NARROW = 64
"""Of the width of a head."""
_MOST_KEYS = 4096
"""Of the kernel: so many scores of a vector of queries stay in the second-level cache."""
_LEAST_EXPONENT = -14.0


def attend(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, *, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """`softmax(q k^T / sqrt(C / heads)) v`, head by head.

    Args:
        q: (B, L, C).
        k: (B, M, C).
        v: (B, M, C).
        num_heads: a divisor of C.
        mask: bool, (L, M) or (B, 1, L, M), which keys each query sees, at least one; None: all.
        causal: query `l` sees the keys up to number `l` alone; without a mask.

    Returns:
        (B, L, C).
    """
    return (
        _attend_to_all(q, k, v, num_heads) if mask is None and not causal else _attend(q, k, v, num_heads, mask, causal)
    )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    q, k, v = (_heads(t, num_heads) for t in (q, k, v))
    return _softmax_attention(q, k, v, mask, causal).transpose(1, 2).flatten(2)


def _suits_the_kernel(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> bool:
    cast = torch.is_autocast_enabled("cpu") and q.dtype is torch.float32
    if cast or not torch.backends.cuda.flash_sdp_enabled():  # another way was chosen
        return False
    if not (q.dim() == k.dim() == 3 and k.shape == v.shape and q.shape[::2] == k.shape[::2]):
        return False
    fits = q.shape[2] % num_heads == 0 and q.shape[2] // num_heads <= _NARROW and k.shape[1] <= _MOST_KEYS
    return fits and q.shape[0] * num_heads >= torch.get_num_threads()


_attend_to_all = Fused(_attend, "attention", _suits_the_kernel, (torch.float32, torch.bfloat16))


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, L, C) to (B, heads, L, C / heads)."""
    return x.unflatten(-1, (num_heads, x.shape[-1] // num_heads)).transpose(1, 2)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Of (..., heads, L, d) each, with a mask (..., L, L) of the keys that each query sees, at least one."""
    if _trains_faster_in_float32(q):
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, is_causal=causal).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


def _trains_faster_in_float32(q: Tensor) -> bool:
    """Whether PyTorch's backward pass on the CPU, slow for narrow 16-bit heads, loses more than copies cost."""
    narrow = q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] <= _NARROW
    return narrow and q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad


class FullAttention(nn.Module):
    """Every token attends to every token: `attend`. Time grows with the square of the tokens."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, grid: tuple[int, int]) -> Tensor:
        """Map queries, keys and values, each (B, H * W, C), of a grid (H, W) to (B, H * W, C)."""
        return attend(q, k, v, num_heads)


class WindowAttention(nn.Module):
    """Every token attends to the tokens of its window around it: time and memory linear in the tokens.

    Rows and columns are cut at `shift`, `shift + window`, ..., on any grid; the windows at the borders are smaller. On
    either axis a token sees as far as to the nearest cut, on both of its sides: it stays in the middle of what it
    sees, so that what is smooth comes out smooth, and no cut shows. The border of the grid is no cut, and an axis no
    longer than a window has none: there every token sees all. What is near a cut sees far under another shift: in
    the next block, or in other heads of this one.

    Args:
        window: side of a window, in tokens.
        shift: the first cut, from 0 (none but the border) to `window - 1`. Several: the heads are divided into as
            many runs, each with its own, as far as there are heads. None: `(0, window // 2)`.

    Raises:
        ConfigError: a value is out of its range.

    Source: Liu et al., "Swin Transformer", 2021, section 3.2, for shifted windows.
    """

    def __init__(self, window: int = 8, shift: int | Sequence[int] | None = None) -> None:
        super().__init__()
        expect_size("window", window)
        shifts = (0, window // 2) if shift is None else tuple(shift) if isinstance(shift, Sequence) else (shift,)
        if not shifts or not all(type(first) is int and 0 <= first < window for first in shifts):
            raise ConfigError(f"shift: expected ints from 0 to window - 1 = {window - 1}, got {shift!r}")
        self.window, self.shifts = window, shifts

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, grid: tuple[int, int]) -> Tensor:
        """Map queries, keys and values, each (B, H * W, C), of a grid (H, W) to (B, H * W, C)."""
        runs = min(len(self.shifts), num_heads)
        heads = [num_heads * (run + 1) // runs - num_heads * run // runs for run in range(runs)]
        q, k, v = (t.unflatten(-1, (num_heads, q.shape[-1] // num_heads)).unflatten(1, grid) for t in (q, k, v))
        parts = zip(*(t.split(heads, dim=3) for t in (q, k, v)), self.shifts, strict=False)
        maps = [self._attend(*part) for part in parts]
        return (maps[0] if runs == 1 else torch.cat(maps, dim=3)).flatten(3).flatten(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, shift: int) -> Tensor:
        """Map (B, H, W, heads, d), each, to the same, with one shift."""
        height, width = q.shape[1:3]
        rows, columns = _Cut.of(height, self.window, shift), _Cut.of(width, self.window, shift)
        batch, heads, seen = q.shape[0], q.shape[3], _seen(rows, columns, q.device)
        q, k, v = (_cut_out(t, rows, columns) for t in (q, k, v))
        y = _softmax_attention(q, k, v, seen).unflatten(2, (rows.side, columns.side))
        y = y.unflatten(1, (batch, heads)).unflatten(0, (rows.windows, columns.windows))
        y = y.permute(2, 0, 4, 1, 5, 3, 6).flatten(3, 4).flatten(1, 2)
        return cut(cut(y, 1, height, rows.before), 2, width, columns.before)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"window={self.window}, shift={self.shifts}"


class _Cut(NamedTuple):
    """How an axis is padded and cut into windows of one side, with so much padding before the first token."""

    size: int
    side: int
    before: int
    spare: int = 0
    """Windows of padding alone."""

    @classmethod
    def of(cls, size: int, window: int, shift: int) -> _Cut:
        if holds_always(size <= window):
            return cls(size, size, 0)
        if holds_always(size > window):
            return cls(size, window, -shift % window)
        # A graph that serves both is not to ask whether there is one window or more: it has always more.
        return cls(size, window, -shift % window * min(1, max(0, size - window)), spare=1)

    @property
    def windows(self) -> int:
        return (self.before + self.size + (1 + self.spare) * self.side - 1) // self.side

    @property
    def used(self) -> int:
        return self.windows - self.spare

    @property
    def after(self) -> int:
        return self.windows * self.side - self.before - self.size

    def seen(self, device: torch.device) -> Tensor:
        """Which tokens of its window each one sees: (windows, side, side) bool; padding sees something, too."""
        step, side = torch.arange(self.windows * self.side, device=device), torch.arange(self.side, device=device)
        number, place, last = step // self.side, step % self.side, self.side - 1
        before = torch.where(number > 0, place, last)
        after = torch.where(number < self.used - 1, last - place, last)
        near = (place[:, None] - side).abs() <= before.minimum(after)[:, None]
        inside = (step >= self.before) & ((step < self.before + self.size) | (number >= self.used))
        return (near & inside.unflatten(0, (-1, self.side))[number]).unflatten(0, (-1, self.side))


def _cut_out(x: Tensor, rows: _Cut, columns: _Cut) -> Tensor:
    """Pad (B, H, W, heads, d) with zeros and cut it: (windows, B * heads, tokens of a window, d)."""
    if not all(holds_always(rest == 0) for rest in (rows.before, rows.after, columns.before, columns.after)):
        x = F.pad(x, (0, 0, 0, 0, columns.before, columns.after, rows.before, rows.after))
    x = x.unflatten(2, (-1, columns.side)).unflatten(1, (-1, rows.side))
    return x.permute(1, 3, 0, 5, 2, 4, 6).flatten(4, 5).flatten(2, 3).flatten(0, 1)


def _seen(rows: _Cut, columns: _Cut, device: torch.device) -> Tensor | None:
    """Which tokens of its window each one sees: (windows, 1, tokens, tokens) bool; None: all."""
    if all(holds_always(axis.side == axis.size) for axis in (rows, columns)):
        return None
    # Nothing is broadcast along the windows: a graph would ask whether there is one or more.
    number = torch.arange(rows.windows * columns.windows, device=device)
    by_row, by_column = rows.seen(device)[number // columns.windows], columns.seen(device)[number % columns.windows]
    return (by_row[:, :, None, :, None] & by_column[:, None, :, None]).flatten(3).flatten(1, 2)[:, None]


class LinearAttention(nn.Module):
    """Attention without the softmax: time and memory linear in the tokens, every token sees every token.

        y_i = (sum_j (f(q_i) . f(k_j)) v_j) / (sum_j f(q_i) . f(k_j)),    f(x) = elu(max(x, -14)) + 1 > 0

    head by head. Features, sums and the normaliser are float32 (float64 for float64 inputs), under autocast too.

    Source: Katharopoulos et al., "Transformers are RNNs", 2020, equations 4 to 7.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, grid: tuple[int, int]) -> Tensor:
        """Map queries, keys and values, each (B, H * W, C), of a grid (H, W) to (B, H * W, C)."""
        wide = accumulation_dtype(v.dtype)
        with autocast_off(q.device):
            features, keys = (_heads(_feature(t.to(wide)), num_heads) for t in (q, k))
            values = keys.transpose(-2, -1) @ _heads(v, num_heads).to(wide)
            total = keys.sum(dim=-2, keepdim=True).transpose(-2, -1)
            y = (features @ values) / (features @ total)
        return y.to(v.dtype).transpose(1, 2).flatten(2)


def _feature(x: Tensor) -> Tensor:
    """`elu(max(x, -14)) + 1`, in a tenth of the time of elu on a CPU, and without its cancellation."""
    above = x.relu()  # its slope at zero is 0, that of the rest 1; what clamps at zero has none there
    return (x - above).clamp(min=_LEAST_EXPONENT).exp() + above


ATTENTION_KINDS: dict[str, Callable[[], nn.Module]] = {
    "full": FullAttention,
    "window": WindowAttention,
    "linear_attention": LinearAttention,
}


def expect_attend(attend: object) -> nn.Module:
    """Return how tokens attend to each other, or raise `ConfigError` unless it can be called so."""
    return expect_part("attend", attend, ("q", "k", "v", "num_heads", "grid"))


def attend_on(attend: nn.Module, q: Tensor, k: Tensor, v: Tensor, num_heads: int, grid: tuple[int, int]) -> Tensor:
    """Call what `expect_attend` returned, and check the shape of its result."""
    return expect_result("attend", attend(q, k, v, num_heads, grid), tuple(q.shape), "(B, H * W, C)")


def default_heads(dim: int, most: int) -> int:
    """The largest number of heads up to `most` that divides the width."""
    return max(heads for heads in range(1, most + 1) if dim % heads == 0)


def check_heads(dim: int, num_heads: int) -> None:
    """Raise `ConfigError` unless the heads divide the width."""
    if not isinstance(num_heads, int) or num_heads < 1 or dim % num_heads:
        raise ConfigError(
            f"num_heads: expected a divisor of the width {dim}, got {num_heads!r}; {default_heads(dim, 16)} is one"
        )


class SelfAttention(nn.Module):
    """Multi-head self-attention with bias: `Linear(attend(q, k, v))`.

    Args:
        dim: width C.
        num_heads: a divisor of `dim`.
        attend: how the tokens attend to each other: `WindowAttention`, `LinearAttention`, or one's own, called as
            `attend(q, k, v, num_heads, grid)`; None: `FullAttention()`.

    Raises:
        ConfigError: the heads do not divide the width, or `attend` cannot be called so.
    """

    takes_grid = True

    def __init__(self, dim: int, num_heads: int, attend: nn.Module | None = None) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attend = FullAttention() if attend is None else expect_attend(attend)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Mix the tokens of (B, L, C) -> (B, L, C), where L = H * W of a grid (H, W); None: one row."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        y: Tensor = self.proj(attend_on(self.attend, q, k, v, self.num_heads, grid or (1, x.shape[1])))
        return y

    def extra_repr(self) -> str:
        """The heads, for `print`."""
        return f"num_heads={self.num_heads}"


class CrossAttention(nn.Module):
    """Attention of tokens to a context: `Linear(attend(q(x), k(context), v(context)))`, q, k and v without bias.

    Args:
        dim: width C.
        num_heads: heads.
        head_dim: width of a head.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.q, self.k, self.v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.proj = nn.Linear(inner, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map (B, L, C), with a context (B, T, C), to (B, L, C)."""
        y: Tensor = self.proj(attend(self.q(x), self.k(context), self.v(context), self.num_heads))
        return y
