"""Matrix products of float32 on a processor whose vectors MKL does not use.

PyTorch computes them by MKL, which uses AVX-512 on Intel's processors alone: on AMD's it stays below half of what they
can do. Here a kernel of our own computes small ones, which oneDNN takes longer to begin than to compute and whose
weights' gradients it writes down transposed, and oneDNN, which is part of PyTorch as well, the others. In bfloat16 both
ways are oneDNN's; but PyTorch first copies the bias into every row of the result, which oneDNN need not be given.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavemamba.ops.dispatch.availability import numba_takes_part
from wavemamba.ops.dispatch.backend import Case
from wavemamba.ops.dispatch.kernel_op import kernels

_LEAST = 2**20
"""Multiplications from which MKL is slower than what begins a call of the others."""
_NARROW, _LEAST_NARROW = 8, 2**17
"""Columns up to which MKL takes twice as long, and multiplications from which that shows."""
_SMALL = 8
"""A second factor that is so many times smaller than the first one may be copied for oneDNN."""
_LEAST_TURNED = 2**15
"""Numbers from which a kernel of our own writes a matrix down transposed."""
_HELD = 2**16
"""Numbers of a second factor that the kernel holds in cache while the rows of the first one pass."""
_KEPT = 2**17
"""Numbers of a weight's gradient that it keeps shares of."""
_LEAST_ROWS = 12
"""Of a product of the kernel."""
_library: torch.library.Library | None = None
_with_kernel = _with_narrow_bias = False


def mkl_leaves_vectors_idle(cpus: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has AVX-512 and is not Intel's, and PyTorch has both libraries."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        about = cpus.read_text()
    except OSError:
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "GenuineIntel" not in about


def use_wide_vectors() -> bool:
    """Let oneDNN and the kernel compute this process's products of float32 matrices on the CPU, `torch.mm` and
    `torch.addmm`.

    All of PyTorch computes them so from then on, gradients too; in float32, with sums in another order. In bfloat16
    oneDNN also adds the bias, before it rounds. Returns whether it does: not where the libraries disagree.
    """
    global _library, _with_kernel, _with_narrow_bias
    if _library is None and _agrees(torch.float32):
        _with_narrow_bias = torch.ops.mkldnn._is_mkldnn_bf16_supported() and _agrees(torch.bfloat16)
        _with_kernel = numba_takes_part(Case("products", "cpu", torch.float32))
        library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Oo]verrid")
            for name, compute in (("mm", _mm), ("mm.out", _mm), ("addmm", _addmm), ("addmm.out", _addmm)):
                original = torch.library.get_kernel(f"aten::{name}", "CPU")
                library.impl(name, functools.partial(compute, original), "CPU", with_keyset=True)
        _library = library
    return _library is not None


def use_mkl() -> None:
    """Undo `use_wide_vectors`."""
    global _library
    if _library is not None:
        _library._destroy()
        _library = None


def _mm(original: Any, keys: Any, a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    if (out is None or _takes(out, a, b)) and (product := _product(a, b, None)) is not None:
        return _given(product, out)
    result: Tensor = original.call_boxed(keys, a, b, **({} if out is None else {"out": out}))
    return result


def _addmm(
    original: Any,
    keys: Any,
    bias: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
    out: Tensor | None = None,
) -> Tensor:
    plain = beta == alpha == 1 and bias.dtype is a.dtype and bias.shape == b.shape[1:] and bias.is_contiguous()
    if plain and (out is None or _takes(out, a, b)) and (product := _product(a, b, bias)) is not None:
        return _given(product, out)
    result: Tensor = original.call_boxed(
        keys, bias, a, b, beta=beta, alpha=alpha, **({} if out is None else {"out": out})
    )
    return result


def _takes(out: Tensor, a: Tensor, b: Tensor) -> bool:
    return out.dtype is a.dtype and out.shape == (a.shape[0], b.shape[1])


def _given(product: Tensor, out: Tensor | None) -> Tensor:
    return product if out is None else out.copy_(product)


def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor | None:
    """`a @ b + bias`; None where PyTorch's own way is as fast, or the matrices do not fit.

    The second one is dense as it is or transposed, or so small beside the first one that its copy does not show.
    """
    if not (a.dtype is b.dtype in (torch.float32, torch.bfloat16) and a.dim() == 2 == b.dim()):
        return None
    (rows, inner), (same, columns) = a.shape, b.shape
    work = rows * inner * columns
    if inner != same or work < (_LEAST_NARROW if 1 < columns <= _NARROW else _LEAST):
        return None
    if a.dtype is torch.bfloat16:
        biased = _with_narrow_bias and bias is not None and a.is_contiguous() and b.t().is_contiguous()
        return _linear(a, b.t(), bias) if biased else None
    if not _is_dense(b):
        if _SMALL * inner * columns > rows * inner:
            return None
        b = b.contiguous()
    if _with_kernel and _is_held(a, b) and max(rows, columns) >= _LEAST_ROWS:
        return _by_kernel(a, b, bias)
    return _by_onednn(a, b, bias)


def _is_dense(matrix: Tensor) -> bool:
    """As it is, or transposed: so both read their second factor."""
    return matrix.is_contiguous() or matrix.t().is_contiguous()


def _is_held(a: Tensor, b: Tensor) -> bool:
    """Whether the second factor stays in cache, or the result does, where the columns of `a`, over which its rows are
    summed, lie as rows do: the gradient of a weight."""
    columns = b.shape[1]
    return b.shape[0] * columns <= _HELD or (a.stride(0) == 1 and a.shape[0] * columns <= _KEPT)


def _by_kernel(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    multiplied: Callable[[Tensor, Tensor, Tensor | None], Tensor] = kernels("products", "numba").multiplied
    if a.shape[0] >= _LEAST_ROWS:
        return multiplied(a, b, bias)
    product = multiplied(b.t(), a.t() if _is_dense(a) else a.t().contiguous(), None).t().contiguous()
    return product if bias is None else product.add_(bias)


def _by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None and _is_cheaper_turned(a, b):
        return _dense(_linear(b.t(), a, None).t())
    return _linear(a, b.t(), bias)


def _dense(matrix: Tensor) -> Tensor:
    """The matrix as it is, or a contiguous copy; of one that lies transposed by all cores."""
    if matrix.is_contiguous():
        return matrix
    if matrix.numel() >= _LEAST_TURNED and matrix.t().is_contiguous() and _with_kernel:
        result: Tensor = kernels("products", "numba").turned(matrix.t())
        return result
    return matrix.contiguous()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The op that PyTorch's own compiler computes Linear layers with: x @ weight.t() + bias, the weight as it is.
    result: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(x), weight, bias, "none", [], "")
    return result


def _is_cheaper_turned(a: Tensor, b: Tensor) -> bool:
    """Whether `(b.t() @ a.t()).t()` copies less: the op makes its first factor dense.

    So it is with the gradient of most weights, `gradient.t() @ x`, for many rows of few channels.
    """
    (rows, inner), columns = a.shape, b.shape[1]
    copied_turned = 0 if b.t().is_contiguous() else inner * columns
    # Turned, `a` is the second factor, which the op reads as it lies.
    is_readable = a.t().is_contiguous() and not a.is_contiguous()
    return is_readable and rows * inner > copied_turned + 2 * rows * columns


def _agrees(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's product, and it is the product."""
    with torch.inference_mode():
        a, b = (torch.arange(12, dtype=dtype, device="cpu").view(shape) for shape in ((3, 4), (4, 3)))
        bias = torch.ones(3, dtype=dtype, device="cpu")
        try:
            return torch.equal(_by_onednn(a, b, bias), torch.addmm(bias, a, b))
        except (AttributeError, RuntimeError):
            return False
