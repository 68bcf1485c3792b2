"""The names of the DiffuSSM family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemamba.models.family import EntryPoint, Family

if TYPE_CHECKING:
    from wavemamba.models.diffussm.model import DiffuSSM

_SIZES = {"s": (384, 13), "l": (768, 25), "xl": (1152, 29)}


def _load() -> type[DiffuSSM]:
    from wavemamba.models.diffussm.model import DiffuSSM

    return DiffuSSM


FAMILY = Family(
    "diffussm",
    _load,
    {
        f"diffussm_{size}": EntryPoint(f"{depth} blocks of width {dim}, no patches.", {"dim": dim, "depth": depth})
        for size, (dim, depth) in _SIZES.items()
    },
)
