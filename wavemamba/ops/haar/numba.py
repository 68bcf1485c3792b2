"""Haar packet map on the CPU: what the numba kernel is given."""

from __future__ import annotations

from torch import Tensor

from wavemamba.ops.cpu.runtime import launch
from wavemamba.ops.cpu.tensors import empty_rows, float_rows, rows
from wavemamba.ops.haar import numba_kernels as kernels
from wavemamba.ops.haar.op import HaarInputs

_LAYOUTS = {"channel": kernels.CHANNEL, "interleaved": kernels.INTERLEAVED, "mosaic": kernels.MOSAIC}


def forward(inputs: HaarInputs) -> Tensor:
    """One read and one write of the map; see `wavemamba.ops.haar` for the map and shapes."""
    x, levels, layout, scale, inverse = inputs
    batch, height, width, channels = x.shape
    side = 2**levels
    source = float_rows(x)
    if source.stride(1) != width * source.stride(2):
        source = source.contiguous()
    target = empty_rows(x.shape)
    job = kernels.JOB.fill(
        batch * (height // side) * (width // side),
        levels=levels,
        height=height // side,
        width=width // side,
        channels=channels,
        layout=_LAYOUTS[layout],
        inverse=inverse,
        scale=scale,
        x=rows(source.flatten(1, 2)),
        y=rows(target.flatten(1, 2)),
    )
    launch(kernels.haar_map, job)
    return target.to(x.dtype)
