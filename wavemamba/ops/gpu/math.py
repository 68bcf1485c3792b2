# mypy: ignore-errors
# Triton's own language: no types, no unpacking inside tuples, no `and` between compile-time and run-time conditions.
"""Triton functions that the kernels of all ops share."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow: exp2(inf) is inf and its reciprocal 0."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) with a relative error of a few ulp everywhere, also where the result is tiny.

    With w = exp(-|x|): max(x, 0) + log1p(w), and log1p(w) = 2 atanh(s), s = w / (2 + w) <= 1/3, by its series.
    """
    w = tl.exp2(-tl.abs(x) * LOG2E)
    s = w / (2.0 + w)
    q = s * s
    series = 2.0 / 13
    series = series * q + 2.0 / 11
    series = series * q + 2.0 / 9
    series = series * q + 2.0 / 7
    series = series * q + 2.0 / 5
    series = series * q + 2.0 / 3
    series = series * q + 2.0
    return tl.maximum(x, 0.0) + s * series
