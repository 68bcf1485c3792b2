"""What the numba kernels of the fused functions are given, and what they return; see `wavemamba.ops.fused`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from wavemamba.ops.cpu.runtime import launch, sum_slices
from wavemamba.ops.cpu.simd import LANES
from wavemamba.ops.cpu.tensors import address, contiguous, empty_rows, float_rows, kernel_rows, rows
from wavemamba.ops.fused import numba_attention as attention_kernels
from wavemamba.ops.fused import numba_rows as kernels

_NUMBERS_A_RUN = 8192
"""Of a work item: enough to be worth a turn, few enough for the first-level cache."""
_SHARES = 64
"""Items at most where each leaves a share of a sum."""


def _lines(x: Tensor, read: Callable[[Tensor], Tensor] = float_rows) -> Tensor:
    """(..., C) as (1, R, C) with dense rows, copied only if need be."""
    return read(x.reshape(1, -1, x.shape[-1]))


def _run(rows_: int, width: int, most: int | None = None) -> int:
    """How many rows a work item has."""
    run = max(1, _NUMBERS_A_RUN // width)
    return run if most is None else max(run, -(-rows_ // most))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The norm, and what every row was multiplied by."""
    lines, weight = _lines(x), contiguous(weight)
    _, count, width = lines.shape
    y, scales, run = empty_rows(x.shape), empty_rows((count,)), _run(count, width)
    job = kernels.NORM.fill(
        -(-count // run),
        rows=count,
        run=run,
        width=width,
        eps=eps,
        x=rows(lines),
        weight=address(weight),
        y=rows(y.view(1, count, width)),
        scales=address(scales),
    )
    launch(kernels.rms_norm, job)
    return y, (scales,)


def rms_norm_backward(g: Tensor, x: Tensor, weight: Tensor, eps: float, scales: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x and weight."""
    flowing, lines, weight = _lines(g), _lines(x), contiguous(weight)
    _, count, width = lines.shape
    run = _run(count, width, _SHARES)
    items = -(-count // run)
    dx, dweight = empty_rows(x.shape), empty_rows((items, width))
    job = kernels.NORM_BACKWARD.fill(
        items,
        rows=count,
        run=run,
        width=width,
        g=rows(flowing),
        x=rows(lines),
        weight=address(weight),
        scales=address(scales),
        dx=rows(dx.view(1, count, width)),
        dweight=address(dweight),
    )
    launch(kernels.rms_norm_backward, job)
    return dx, sum_slices(dweight), None


def gated_gelu(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One half through GELU, times the other."""
    lines = _lines(x, kernel_rows)
    count, width = lines.shape[1], lines.shape[2] // 2
    y, run = empty_rows((*x.shape[:-1], width), x.dtype), _run(count, width)
    job = kernels.GELU.fill(
        -(-count // run),
        rows=count,
        run=run,
        width=width,
        x=rows(lines, may_be_narrow=True),
        y=rows(y.view(1, count, width), may_be_narrow=True),
    )
    launch(kernels.gated_gelu, job)
    return y, ()


def gated_gelu_backward(g: Tensor, x: Tensor) -> tuple[Tensor | None, ...]:
    """Gradient of x."""
    flowing, lines = _lines(g), _lines(x)
    count, width = lines.shape[1], lines.shape[2] // 2
    dx, run = empty_rows(x.shape), _run(count, width)
    job = kernels.GELU_BACKWARD.fill(
        -(-count // run),
        rows=count,
        run=run,
        width=width,
        g=rows(flowing),
        x=rows(lines),
        dx=rows(dx.view(1, count, 2 * width)),
    )
    launch(kernels.gated_gelu_backward, job)
    return (dx,)


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The result; the result in float32, and of every query its largest score and one by the sum of its powers, which
    the gradient reads."""
    q, k, v = (kernel_rows(t) for t in (q, k, v))
    y, of_queries = empty_rows(q.shape), empty_rows((2, q.shape[0], num_heads, q.shape[1]))
    job = attention_kernels.ATTENTION.fill(
        **_attention_sizes(q, k, num_heads),
        q=rows(q, may_be_narrow=True),
        k=rows(k, may_be_narrow=True),
        v=rows(v, may_be_narrow=True),
        y=rows(y),
        most=address(of_queries[0]),
        share=address(of_queries[1]),
    )
    launch(attention_kernels.attention, job)
    return y.to(q.dtype), (y, of_queries)


def attention_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, num_heads: int, y: Tensor, of_queries: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of queries, keys and values."""
    g, q, k, v = (kernel_rows(t) for t in (g, q, k, v))
    dq, dk, dv = (empty_rows(t.shape) for t in (q, k, v))
    tensors = {"q": q, "k": k, "v": v, "y": y, "g": g, "dq": dq, "dk": dk, "dv": dv}
    places: dict[str, Any] = {name: rows(tensor, may_be_narrow=True) for name, tensor in tensors.items()}
    job = attention_kernels.ATTENTION_BACKWARD.fill(
        **_attention_sizes(q, k, num_heads),
        **places,
        most=address(of_queries[0]),
        share=address(of_queries[1]),
    )
    launch(attention_kernels.attention_backward, job)
    return dq, dk, dv, None


def _attention_sizes(q: Tensor, k: Tensor, num_heads: int) -> dict[str, Any]:
    width, all_heads = q.shape[2] // num_heads, q.shape[0] * num_heads
    pairs = max(q.shape[1], k.shape[1]) <= LANES // 2
    return {
        "count": -(-all_heads // 2) if pairs else all_heads,
        "pairs": pairs,
        "all_heads": all_heads,
        "heads": num_heads,
        "queries": q.shape[1],
        "keys": k.shape[1],
        "width": width,
        "scale": width**-0.5,
    }
