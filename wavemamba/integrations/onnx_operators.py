"""What the operators of this library are in ONNX; imported where onnxscript is installed alone.

Each function takes what its operator takes, tensors as values of the graph that is being built and the rest as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import BOOL, FLOAT, graph, ir, opset18, script, values

from wavemamba.ops.haar.reference import packet_matrix

Value = Any
op: Any = opset18


@script(values.Opset("wavemamba", 1))
def recurrence(state: FLOAT, step_size: FLOAT, drive: FLOAT, B: FLOAT, C: FLOAT, A: FLOAT) -> tuple[FLOAT, FLOAT]:
    """`h_l = exp(d_l A) h_{l-1} + v_l B_l` and `y_l = C_l h_l`, along axis 1; returns the last state, and every y.

    The channels come last, (B, G, N, E / G), as runtimes broadcast along the last axis fastest.
    """

    @graph()
    def step(before, d, v, b, c):
        after = op.Exp(d * A) * before + v * b
        y = op.MatMul(c, after)
        return after, y

    last, y = op.Scan(
        state,
        step_size,
        drive,
        B,
        C,
        body=step,
        num_scan_inputs=4,
        scan_input_axes=[1, 1, 1, 1],
        scan_output_axes=[1],
    )
    return last, y


@script(values.Opset("wavemamba", 1))
def restarted_recurrence(first: FLOAT, decay: FLOAT, value: FLOAT, starts: BOOL) -> FLOAT:
    """`h_l = decay_l h_{l-1} + value_l`, and `value_l` alone where a step starts, along axis 1."""

    @graph()
    def step(before, a, v, alone):
        after = op.Where(alone, v, a * before + v)
        h = op.Identity(after)
        return after, h

    _last, states = op.Scan(
        first, decay, value, starts, body=step, num_scan_inputs=3, scan_input_axes=[1, 1, 1], scan_output_axes=[1]
    )
    return states


def linear_recurrence(decay: Value, value: Value, starts: Value | None) -> Value:
    """One `Scan`, for any length."""
    first = op.Squeeze(op.Slice(value, [0], [1], [1]), [1])
    zero = op.CastLike(op.Constant(value_float=0.0), value)
    if starts is None:
        starts = op.Less(op.Abs(decay), zero)  # nowhere, in the decay's shape
    return restarted_recurrence(op.Expand(zero, op.Shape(first)), decay, value, starts)


def selective_scan(
    u: Value,
    delta: Value,
    A: Value,
    B: Value,
    C: Value,
    D: Value | None,
    z: Value | None,
    delta_bias: Value | None,
    delta_softplus: bool,
    initial_state: Value | None,
    order: Value | None,
    seq_idx: None,
    keep: bool,
    backend: str,
) -> tuple[Value, Value, Value]:
    """The recurrence as one `Scan`, for any batch and length."""
    width, states = A.shape
    groups = B.shape[2]
    x, d, B, C = (_visited(rows, order) for rows in (u, delta, B, C))
    if delta_bias is not None:
        d = op.Add(d, _wide(delta_bias))
    if delta_softplus:
        d = op.Softplus(d)
    sides = [groups, states, width // groups]
    per_channel = [0, 0, groups, 1, width // groups]
    last, y = recurrence(
        _zeros_for(u, sides) if initial_state is None else _by_groups(initial_state, [0, groups, -1, states]),
        op.Reshape(d, per_channel),
        op.Reshape(op.Mul(d, x), per_channel),
        op.Unsqueeze(B, [4]),
        op.Unsqueeze(C, [3]),
        _by_groups(A, [groups, -1, states]),
    )
    y = op.Reshape(y, [0, 0, width])
    if D is not None:
        y = op.Add(y, op.Mul(_wide(D), x))
    y = _put_back(y, order)
    if z is not None:
        y = op.Mul(y, _silu(_wide(z)))
    last = op.Reshape(op.Transpose(last, perm=[0, 1, 3, 2]), [0, width, states])
    return op.CastLike(y, u), last, op.Constant(value_floats=[0.0])


def causal_conv1d(
    x: Value,
    weight: Value,
    bias: Value | None,
    silu: bool,
    initial_state: Value | None,
    order: Value | None,
    seq_idx: None,
    backend: str,
) -> Value:
    """A depthwise `Conv`, padded before the first step."""
    width = weight.shape[1]
    steps = _visited(x, order)
    if initial_state is not None:
        steps = op.Concat(_wide(initial_state), steps, axis=1)
    y = op.Conv(
        op.Transpose(steps, perm=[0, 2, 1]),
        op.Unsqueeze(_wide(weight), [1]),
        None if bias is None else _wide(bias),
        group=weight.shape[0],
        pads=[width - 1 if initial_state is None else 0, 0],
    )
    y = op.Transpose(_silu(y) if silu else y, perm=[0, 2, 1])
    return op.CastLike(_put_back(y, order), x)


def haar(x: Value, levels: int, layout: str, scale: float, inverse: bool, backend: str) -> Value:
    """The transform of every cell as one product with a matrix, between two permutations of the axes."""
    side, channels = 2**levels, x.shape[3]
    matrix = (scale * packet_matrix(levels)).flatten(1).float()  # (bands, pixels of a cell)
    if inverse:
        cells = op.MatMul(_constant(matrix.mT), _bands_of(_wide(x), side, channels, layout))
        grid = _on_a_grid(cells, side, channels, "interleaved")
    else:
        bands = op.MatMul(_constant(matrix), _bands_of(_wide(x), side, channels, "interleaved"))
        grid = _on_a_grid(bands, side, channels, layout)
    return op.CastLike(op.Reshape(grid, op.Shape(x)), x)


def _bands_of(x: Value, side: int, channels: int, layout: str) -> Value:
    """(B, H, W, C) to (B, w, h, side**2, C), sides being open; see `wavemamba.ops.haar.layout`."""
    if layout == "mosaic":
        x = op.Transpose(op.Reshape(x, [0, 0, side, -1, channels]), perm=[0, 2, 3, 1, 4])  # (B, p2, w, H, C)
        x = op.Transpose(op.Reshape(x, [0, 0, 0, side, -1, channels]), perm=[0, 2, 4, 3, 1, 5])
        return op.Reshape(x, [0, 0, 0, side * side, channels])
    x = op.Transpose(op.Reshape(x, [0, 0, -1, side * channels]), perm=[0, 2, 1, 3])  # (B, w, H, p2 C)
    x = op.Reshape(x, [0, 0, -1, side * side, channels])
    if layout == "channel":
        x = op.Reshape(op.Transpose(x, perm=[0, 1, 2, 4, 3]), [0, 0, 0, side * side, channels])
    return x


def _on_a_grid(bands: Value, side: int, channels: int, layout: str) -> Value:
    """(B, w, h, side**2, C) to six axes in the sequence of (B, H, W, C)."""
    if layout == "channel":
        return op.Transpose(op.Reshape(bands, [0, 0, 0, channels, side, side]), perm=[0, 2, 4, 1, 5, 3])
    perm = [0, 3, 2, 4, 1, 5] if layout == "mosaic" else [0, 2, 3, 1, 4, 5]
    return op.Transpose(op.Reshape(bands, [0, 0, 0, side, side, channels]), perm=perm)


def scan_permutation(reference: str, H: int, W: int, device: str, inverse: bool) -> Value:
    """A constant."""
    return _constant(torch.ops.wavemamba.scan_permutation(reference, H, W, torch.device("cpu"), inverse))


def filter_bank(kind: str, name: str, inverse: bool, device: str) -> Value:
    """A constant."""
    return _constant(torch.ops.wavemamba.filter_bank(kind, name, inverse, torch.device("cpu")))


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.wavemamba.causal_conv1d.default: causal_conv1d,
    torch.ops.wavemamba.filter_bank.default: filter_bank,
    torch.ops.wavemamba.haar.default: haar,
    torch.ops.wavemamba.linear_recurrence.default: linear_recurrence,
    torch.ops.wavemamba.scan_permutation.default: scan_permutation,
    torch.ops.wavemamba.selective_scan.default: selective_scan,
}
"""By operator, as `torch.onnx.export(custom_translation_table=...)` takes them."""


def _wide(x: Value) -> Value:
    """In float32, the dtype of all sums: float64 has no kernels, and is traced through."""
    return op.Cast(x, to=ir.DataType.FLOAT)


def _by_groups(x: Value, split: list[int]) -> Value:
    """(..., E, N) to (..., G, N, E / G)."""
    axes = list(range(len(split)))
    return op.Transpose(op.Reshape(_wide(x), split), perm=[*axes[:-2], axes[-1], axes[-2]])


def _zeros_for(x: Value, sides: list[int]) -> Value:
    """Zeros (B, *sides), with the batch of x."""
    shape = op.Concat(op.Shape(x, start=0, end=1), op.Constant(value_ints=sides), axis=0)
    return op.Expand(op.Constant(value_float=0.0), shape)


def _visited(x: Value, order: Value | None) -> Value:
    """The rows (B, L, ...) in the sequence of the steps."""
    return _wide(x) if order is None else op.Gather(_wide(x), order, axis=1)


def _put_back(y: Value, order: Value | None) -> Value:
    """What `_visited` did, undone."""
    if order is None:
        return y
    steps = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(order)), op.Constant(value_int=1))
    return op.Gather(y, op.ScatterElements(order, order, steps, axis=0), axis=1)


def _silu(x: Value) -> Value:
    return op.Mul(x, op.Sigmoid(x))


def _constant(tensor: torch.Tensor) -> Value:
    return op.Constant(value=ir.tensor(tensor.contiguous().numpy()))
