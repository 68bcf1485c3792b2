"""The dtype that a sampled model computes in: the caller's, the model's own, or the faster one here."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.dtypes import accumulation_dtype, autocast_off
from wavemamba.errors import ConfigError
from wavemamba.names import choose

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
AUTO = "auto"
_ROWS = 256
_WIDEST = 1024
_LEAST_GAIN = 1.5
"""What the rest of a model, which bfloat16 does not speed up, leaves of less is not worth the digits."""


class Precision(NamedTuple):
    """The dtype that a model computes in, and why."""

    dtype: torch.dtype
    reason: str
    chosen_here: bool = False
    """Whether it was left to this library."""

    @property
    def name(self) -> str:
        """The dtype's, without "torch."."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def named_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype that is given, or named: "float32", "bfloat16", "float16" or "float64".

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(dtype, str):
        return DTYPES[choose("dtype", dtype, [AUTO, *DTYPES])]
    if dtype not in DTYPES.values():
        raise ConfigError(f'dtype: expected "auto", {", ".join(map(repr, DTYPES))}, a dtype or None, got {dtype!r}')
    return dtype


def is_auto(dtype: torch.dtype | str | None) -> bool:
    """Whether the faster dtype is asked for."""
    return isinstance(dtype, str) and choose("dtype", dtype, [AUTO, *DTYPES]) == AUTO


def choose_precision(wanted: torch.dtype | str | None, model: nn.Module, device: torch.device) -> Precision:
    """What a model computes in on a device.

    Args:
        wanted: a dtype or its name; "auto": bfloat16 where it is faster, else float32; None: that of the model.
        model: what computes.
        device: where.

    Raises:
        ConfigError: no such dtype.
    """
    if wanted is None:
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        return Precision(own, "the model's own")
    if not is_auto(wanted):
        return Precision(named_dtype(wanted), "as asked for")
    return Precision(*_faster(model, device), chosen_here=True)


def _faster(model: nn.Module, device: torch.device) -> tuple[torch.dtype, str]:
    """The faster of bfloat16 and float32, and how that is known."""
    if device.type == "cpu":
        matrices = (parameter.shape for parameter in model.parameters() if parameter.dim() == 2)
        out, inner = max(matrices, key=lambda shape: shape.numel(), default=(_WIDEST, _WIDEST))
        gain = bfloat16_gain(min(inner, _WIDEST), min(out, _WIDEST), torch.get_num_threads())
        if gain >= _LEAST_GAIN:
            return torch.bfloat16, "auto: matrix products are faster in it on this processor"
        return torch.float32, "auto: matrix products are hardly faster in bfloat16 on this processor"
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16, "auto: this GPU computes in it"
        return torch.float32, "auto: this GPU does not compute in bfloat16"
    return torch.float32, f"auto: nothing is known of bfloat16 on {device.type}"


@functools.lru_cache(maxsize=16)
def bfloat16_gain(inner: int, out: int, threads: int) -> float:
    """Time of a product (256, inner) x (inner, out) in float32 on the CPU, divided by its time in bfloat16.

    It takes some milliseconds, once for each size and number of threads.
    """
    dtypes = (torch.float32, torch.bfloat16)
    with torch.inference_mode(), autocast_off(torch.device("cpu")):
        operands = [
            (torch.ones(_ROWS, inner, dtype=dtype, device="cpu"), torch.ones(out, inner, dtype=dtype, device="cpu"))
            for dtype in dtypes
        ]
        seconds = [[_seconds(*pair) for pair in operands] for _ in range(5)]
    wide, narrow = (min(column) for column in zip(*seconds, strict=True))
    return wide / narrow


def _seconds(x: Tensor, weight: Tensor) -> float:
    begun = time.perf_counter()
    F.linear(x, weight)
    return time.perf_counter() - begun


@contextlib.contextmanager
def converted(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The floating parameters and buffers of a model in a dtype, and as they were afterwards."""
    tensors = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    kept = [(tensor, tensor.data) for tensor in tensors if tensor.dtype != dtype]
    try:
        for tensor, data in kept:
            tensor.data = data.to(dtype)
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


def computing_in(model: nn.Module, dtype: torch.dtype) -> Callable[..., Tensor]:
    """A model that is given its image and conditions in a dtype, and whose result has the dtype of the image.

    Solvers keep their state in float32 at least, and the time stays as it is: models make float32 features of it.
    """
    if dtype == accumulation_dtype(dtype):
        return model

    @functools.wraps(model.forward)
    def call(x: Tensor, t: Tensor, *others: Any, **named: Any) -> Tensor:
        narrow = {name: _in_dtype(value, dtype) for name, value in named.items()}
        result: Tensor = model(x.to(dtype), t, *(_in_dtype(value, dtype) for value in others), **narrow)
        return _in_dtype(result, x.dtype)

    return call


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
