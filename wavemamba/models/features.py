"""What single blocks of a model return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from wavemamba.errors import ConfigError
from wavemamba.names import choose

_FORMATS = ("NCHW", "NHWC")


def chosen_blocks(depth: int, indices: int | Sequence[int] | None) -> list[int]:
    """Which blocks are meant, 0 to depth - 1: an int n means the last n, None all, negative ones count from the end.

    Raises:
        ConfigError: there is no such block.
    """
    if isinstance(indices, int):
        indices = range(depth - indices, depth) if 1 <= indices <= depth else [indices + depth]
    chosen = list(range(depth)) if indices is None else [i + depth if i < 0 else i for i in indices]
    for index in chosen:
        if not 0 <= index < depth:
            raise ConfigError(
                f"indices: expected blocks from 0 to {depth - 1}, or the last 1 to {depth}, got {indices}"
            )
    return chosen


def in_format(maps: Sequence[Tensor], output_fmt: str) -> list[Tensor]:
    """Channels-last maps (B, H, W, C) in the format that was asked for."""
    channels_first = choose("output_fmt", output_fmt, _FORMATS) == "NCHW"
    return [x.permute(0, 3, 1, 2).contiguous() if channels_first else x for x in maps]


def capture_blocks(
    model: nn.Module, args: tuple[Any, ...], indices: int | Sequence[int] | None, output_fmt: str
) -> list[Tensor]:
    """Run a model and keep what the modules in its `blocks` return: channels-last maps, alone or first of a tuple.

    Raises:
        ConfigError: the model has no `blocks`, or an index or the format is out of range.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ConfigError(
            f"forward_intermediates: expected a model with its blocks in `self.blocks`, an nn.ModuleList, got "
            f"{type(model).__name__}; override forward_intermediates"
        )
    kept: dict[int, Tensor] = {}

    def keep(index: int, output: Any) -> None:
        kept[index] = output[0] if isinstance(output, tuple) else output

    chosen = chosen_blocks(len(blocks), indices)
    hooks = [blocks[i].register_forward_hook(lambda _m, _a, output, i=i: keep(i, output)) for i in set(chosen)]
    try:
        model(*args)
    finally:
        for hook in hooks:
            hook.remove()
    return in_format([kept[i] for i in chosen], output_fmt)
