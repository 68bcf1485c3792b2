"""Transforms beside pytorch_wavelets, ops beside PyTorch's own and the Mamba packages."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from scan import make_inputs, parallel_scan
from torch import Tensor, nn

from beside.contest import Contest, Side, normal
from wavemamba import frequency_transform, ops, scan_order
from wavemamba.layers.embeddings import resample_position
from wavemamba.ops.haar.layout import arrange_bands
from wavemamba.scans import invert_permutation

LEVELS = 2
MAPS = [(1, 16, 64), (4, 32, 256), (1, 256, 64)]
SEQUENCES = [(8, 16, 64), (1, 256, 1024), (4, 1024, 1024)]


class Analysis(nn.Module):
    """The packet transform by pytorch_wavelets: every band split again; (B, C, H, W) to (B, C * 4**levels, h, w)."""

    def __init__(self, wavelet: str) -> None:
        from pytorch_wavelets import DWTForward

        super().__init__()
        self.dwt = DWTForward(J=1, wave=wavelet, mode="periodization")

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(LEVELS):
            low, (high,) = self.dwt(x)
            x = torch.cat([low.unsqueeze(2), high], dim=2).flatten(1, 2)
        return x


class Synthesis(nn.Module):
    """The inverse of `Analysis`."""

    def __init__(self, wavelet: str) -> None:
        from pytorch_wavelets import DWTInverse

        super().__init__()
        self.idwt = DWTInverse(wave=wavelet, mode="periodization")

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(LEVELS):
            bands = x.unflatten(1, (-1, 4))
            x = self.idwt((bands[:, :, 0], [bands[:, :, 1:]]))
        return x


def _first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1).contiguous()


def _last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def _bands(y: Tensor) -> Tensor:
    """The bands of `Analysis` as ours: (B, C * K, h, w) to (B, h, w, K, C)."""
    return y.unflatten(1, (-1, 4**LEVELS)).permute(0, 3, 4, 2, 1)


def analysis(wavelet: str, batch: int, side: int, channels: int) -> tuple[Side, Side]:
    x = normal(batch, side, side, channels)
    ours = Side(call=frequency_transform(wavelet, LEVELS).analysis, inputs=(x,))
    return ours, Side(call=Analysis(wavelet), inputs=(_first(x),), read=_bands, read_input=_last)


def synthesis(wavelet: str, batch: int, side: int, channels: int) -> tuple[Side, Side]:
    cell = 2**LEVELS
    bands = normal(batch, side // cell, side // cell, cell**2, channels)
    ours = Side(call=frequency_transform(wavelet, LEVELS).synthesis, inputs=(bands,))
    given = bands.permute(0, 4, 3, 1, 2).flatten(1, 2).contiguous()
    return ours, Side(call=Synthesis(wavelet), inputs=(given,), read=_last, read_input=_bands)


def haar_map(batch: int, side: int, channels: int) -> tuple[Side, Side]:
    x = normal(batch, side, side, channels)
    ours = Side(call=lambda x: ops.to_haar_map(x, LEVELS, "mosaic"), inputs=(x,))

    def read(y: Tensor) -> Tensor:
        return arrange_bands(_bands(y) / 2**LEVELS, 2**LEVELS, "mosaic")

    return ours, Side(call=Analysis("haar"), inputs=(_first(x),), read=read, read_input=_last)


def dct(batch: int, side: int, channels: int) -> tuple[Side, Side]:
    x = normal(batch, side, side, channels)
    transform = frequency_transform("dct", LEVELS)
    cell = transform.side
    filters = torch.stack([transform.synthesis(one) for one in torch.eye(cell**2).view(-1, 1, 1, 1, cell**2, 1)])
    filters = filters.view(cell**2, cell, cell)

    def by_products(x: Tensor) -> Tensor:
        cells = x.unflatten(2, (-1, cell)).unflatten(1, (-1, cell))
        return torch.einsum("bhiwjc,kij->bhwkc", cells, filters)

    return Side(call=transform.analysis, inputs=(x,)), Side(call=by_products, inputs=(x,))


def convolution(batch: int, length: int, width: int) -> tuple[Side, Side]:
    x, weight, bias = normal(batch, length, width), normal(width, 4), normal(width)

    def padded(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.conv1d(x, weight.unsqueeze(1), bias, padding=3, groups=width)[..., :length])

    ours = Side(call=lambda *given: ops.causal_conv1d(*given, activation="silu"), inputs=(x, weight, bias))
    given = (x.mT.contiguous(), weight.clone(), bias.clone())
    return ours, Side(call=padded, inputs=given, read=_transposed, read_input=_transposed)


def _transposed(x: Tensor) -> Tensor:
    return x.mT


def _scan(**options: Any) -> Any:
    def call(*values: Tensor) -> Tensor:
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        return ops.selective_scan(**dict(zip(names, values, strict=True)), delta_softplus=True, **options)

    return call


def scan_beside_mambapy(batch: int, length: int, width: int) -> tuple[Side, Side]:
    import mambapy.pscan  # noqa: F401  # so that its absence is told before anything is timed

    inputs = make_inputs(batch, length, width, 16)
    names, values = tuple(inputs), tuple(inputs.values())

    def peer(*values: Tensor) -> Tensor:
        return parallel_scan(dict(zip(names, values, strict=True)))

    return Side(call=_scan(), inputs=values), Side(call=peer, inputs=tuple(value.clone() for value in values))


def scan_beside_transformers(batch: int, length: int, width: int) -> tuple[Side, Side]:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    values = tuple(make_inputs(batch, length, width, 16).values())
    given = tuple(x.mT.contiguous() if x.dim() == 3 else x.clone() for x in values)

    def peer(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        return mamba_selective_scan(u, delta, A, B, C, D=D, z=z, delta_bias=bias, delta_softplus=True)

    return Side(call=_scan(), inputs=values), Side(call=peer, inputs=given, read=_transposed, read_input=_transposed)


def scan_in_order(batch: int, side: int, width: int) -> tuple[Side, Side]:
    order = scan_order("hilbert").permutation(side, side)
    values = tuple(make_inputs(batch, side**2, width, 16).values())
    plain, back = _scan(), invert_permutation(order)

    def gathered(*values: Tensor) -> Tensor:
        return plain(*(x[:, order] if x.dim() == 3 else x for x in values))[:, back]

    given = tuple(value.clone() for value in values)
    return Side(call=_scan(order=order), inputs=values), Side(call=gathered, inputs=given)


def ssd(batch: int, length: int, heads: int) -> tuple[Side, Side]:
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    states, width = 64, 64
    values = (
        normal(batch, length, heads, width),
        normal(batch, length, heads, seed=1),
        -torch.rand(heads) - 0.1,
        normal(batch, length, 1, states, seed=2),
        normal(batch, length, 1, states, seed=3),
        normal(heads, seed=4),
    )
    ours = Side(call=lambda *given: ops.ssd_scan(*given, dt_softplus=True), inputs=values)

    def peer(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return mamba2_chunk_scan(x, dt, A, B, C, chunk_size=64, D=D, dt_softplus=True)

    return ours, Side(call=peer, inputs=tuple(value.clone() for value in values))


def gla(batch: int, length: int, heads: int) -> tuple[Side, Side]:
    width = 64
    q, k, v = (normal(batch, length, heads, width, seed=seed) for seed in range(3))
    log_decay = F.logsigmoid(normal(batch, length, heads, width, seed=3)) / 16

    def step_by_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        state, results = q.new_zeros(batch, heads, width, width), []
        for q_l, k_l, v_l, decay in zip(*(t.unbind(1) for t in (q, k, v, log_decay.exp())), strict=True):
            state = decay.unsqueeze(-1) * state + k_l.unsqueeze(-1) * v_l.unsqueeze(-2)
            results.append((q_l.unsqueeze(-2) @ state).squeeze(-2))
        return torch.stack(results, dim=1)

    values = (q, k, v, log_decay)
    return Side(call=ops.gla_scan, inputs=values), Side(call=step_by_step, inputs=tuple(x.clone() for x in values))


def resampled(old: int, new: int, width: int) -> tuple[Side, Side]:
    table = normal(1, old, old, width)

    def peer(table: Tensor) -> Tensor:
        return F.interpolate(table, size=(new, new), mode="bicubic", antialias=True)

    ours = Side(call=lambda table: resample_position(table, new, new), inputs=(table,))
    return ours, Side(call=peer, inputs=(_first(table),), read=_last, read_input=_last)


def _wavelets() -> list[Contest]:
    contests = []
    for wavelet in ("haar", "db2", "sym8"):
        # pytorch_wavelets is no exact transform of axes that are shorter than the filters.
        maps = [(1, 32, 64), *MAPS[1:]] if wavelet == "sym8" else MAPS
        for what, make in (("analysis", analysis), ("synthesis", synthesis)):
            contests.append(
                Contest(
                    name=f"transform: {wavelet}, {what}",
                    peer="pytorch_wavelets",
                    make=make,
                    sizes=[(wavelet, *size) for size in maps],
                )
            )
    return contests


CONTESTS = [
    *_wavelets(),
    Contest(name="op: to_haar_map", peer="pytorch_wavelets, bands left where they are", make=haar_map, sizes=MAPS),
    Contest(name="transform: dct, analysis", peer="einsum with the filters", make=dct, sizes=MAPS),
    Contest(name="op: causal_conv1d", peer="F.silu(F.conv1d), padded", make=convolution, sizes=SEQUENCES),
    Contest(
        name="op: selective_scan",
        peer="mambapy's pscan",
        make=scan_beside_mambapy,
        sizes=[(8, 16, 8), (1, 256, 1024), (1, 1024, 512)],
        tolerance=1e-4,
    ),
    Contest(
        name="op: selective_scan",
        peer="transformers' loop",
        make=scan_beside_transformers,
        sizes=[(8, 16, 64), (1, 128, 256), (1, 256, 512)],
        tolerance=1e-4,
    ),
    Contest(
        name="op: selective_scan, order=",
        peer="x[:, order], scan, y[:, back]",
        make=scan_in_order,
        sizes=[(8, 4, 64), (1, 16, 1024), (1, 64, 512)],
    ),
    Contest(
        name="op: ssd_scan",
        peer="transformers' chunks",
        make=ssd,
        sizes=[(8, 16, 2), (1, 256, 16), (1, 2048, 16)],
        tolerance=1e-4,
    ),
    Contest(
        name="op: gla_scan",
        peer="loop over the steps",
        make=gla,
        sizes=[(8, 16, 2), (1, 256, 16), (1, 1024, 8)],
        tolerance=1e-4,
    ),
    Contest(
        name="layer: resample_position",
        peer="F.interpolate",
        make=resampled,
        sizes=[(16, 24, 384), (16, 64, 1024), (64, 32, 384)],
        tolerance=1e-4,
    ),
]
