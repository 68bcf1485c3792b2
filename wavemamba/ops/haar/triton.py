"""Haar packet map on a GPU: what the Triton kernel is given."""

from __future__ import annotations

import torch
from torch import Tensor

from wavemamba.ops.gpu.runtime import expect_indexable, launch, tile_width
from wavemamba.ops.haar.op import HaarInputs
from wavemamba.ops.haar.triton_kernels import haar_map

CHANNELS_PER_THREAD = {0: 8, 1: 8, 2: 4, 3: 1}
"""By level: a thread holds 4**levels values of each of its channels, 64 at most."""
WIDEST = {0: 512, 1: 512, 2: 512, 3: 128}
"""Most channels of a program, by level."""


def _flat(x: Tensor) -> Tensor:
    """(B, H, W, C) as (B, H * W, C) with dense channels, copied only if need be."""
    dense = x.stride(3) == 1 or x.shape[3] == 1
    return (x if dense and x.stride(1) == x.shape[2] * x.stride(2) else x.contiguous()).flatten(1, 2)


def forward(inputs: HaarInputs) -> Tensor:
    """All cells at once, in float32; see `wavemamba.ops.haar` for the map and shapes."""
    x, levels, layout, scale, inverse = inputs
    batch, height, width, channels = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return y
    length, side = height * width, 2**levels
    expect_indexable(length)
    rows = _flat(x)
    turned = layout == "channel" and levels > 0 and channels % side**2 == 0
    block = max(tile_width(channels, WIDEST[levels]), side**2 if turned else 1)
    warps = min(4, max(1, block // (32 * CHANNELS_PER_THREAD[levels])))
    launch(
        haar_map,
        batch * (length // side**2) * -(-channels // block),
        x,
        rows,
        y,
        scale * 0.5**levels,
        length,
        width,
        channels,
        *rows.stride()[:2],
        LEVELS=levels,
        LAYOUT=layout,
        INVERSE=inverse,
        TURNED=turned,
        BLOCK=block,
        warps=warps,
        WIDE=length * max(rows.stride(1), channels) >= 2**31,
    )
    return y
