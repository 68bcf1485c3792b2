"""The names of the ZigMa family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemamba.models.family import EntryPoint, Family

if TYPE_CHECKING:
    from wavemamba.models.zigma.model import ZigMa

_SIZES = {"s": (368, 24), "b": (768, 24), "l": (1024, 48)}


def _load() -> type[ZigMa]:
    from wavemamba.models.zigma.model import ZigMa

    return ZigMa


FAMILY = Family(
    "zigma",
    _load,
    {
        f"zigma_{size}{patch}": EntryPoint(
            f"{depth} blocks of width {dim}, patch {patch}.", {"dim": dim, "depth": depth, "patch_size": patch}
        )
        for size, (dim, depth) in _SIZES.items()
        for patch in (1, 2)
    },
)
