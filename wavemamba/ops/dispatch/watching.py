"""Whether anybody looks at the single operations of a call, or PyTorch's dispatcher may be left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def is_watched(values: Iterable[Any]) -> bool:
    """Whether a graph, a trace, a mode, a transform, a subclass or a lazy view among the tensors has to see them."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    if torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return not all(map(_is_plain, values))


def _is_plain(value: Any) -> bool:
    """Whether it is no tensor, or one whose memory holds its numbers, without behaviour of its own."""
    if not isinstance(value, Tensor):
        return True
    lazy = value.is_neg() or value._is_zerotensor() or torch._C._functorch.is_legacy_batchedtensor(value)
    return type(value) in _PLAIN and not lazy
