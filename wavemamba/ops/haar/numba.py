"""Haar packet map on the CPU: what the numba kernel is given."""

from __future__ import annotations

from torch import Tensor

from wavemamba.ops.cpu.runtime import launch
from wavemamba.ops.cpu.tensors import empty_rows, kernel_dtype, kernel_rows, rows
from wavemamba.ops.haar import numba_kernels as kernels
from wavemamba.ops.haar.op import HaarInputs

_NUMBERS_A_RUN = 4096
"""Of a work item: enough to be worth a turn, few enough to share out."""
_LAYOUTS = {"channel": kernels.CHANNEL, "interleaved": kernels.INTERLEAVED, "mosaic": kernels.MOSAIC}


def forward(inputs: HaarInputs) -> Tensor:
    """One read and one write of the map; see `wavemamba.ops.haar` for the map and shapes."""
    x, levels, layout, scale, inverse = inputs
    batch, height, width, channels = x.shape
    side = 2**levels
    source = kernel_rows(x)
    if source.stride(1) != width * source.stride(2):
        source = source.contiguous()
    target = empty_rows(x.shape, kernel_dtype(x.dtype))
    cells, run = batch * (height // side) * (width // side), max(1, _NUMBERS_A_RUN // max(1, side * side * channels))
    job = kernels.JOB.fill(
        -(-cells // run),
        cells=cells,
        run=run,
        levels=levels,
        height=height // side,
        width=width // side,
        channels=channels,
        layout=_LAYOUTS[layout],
        inverse=inverse,
        scale=scale,
        x=rows(source.flatten(1, 2), may_be_narrow=True),
        y=rows(target.flatten(1, 2), may_be_narrow=True),
    )
    launch(kernels.haar_map, job)
    return target.to(x.dtype)
