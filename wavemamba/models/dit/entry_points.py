"""The names of the DiT family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wavemamba.models.family import EntryPoint, Family

if TYPE_CHECKING:
    from wavemamba.models.dit.model import DiT

_SIZES: dict[str, dict[str, Any]] = {
    "s": {"dim": 384, "depth": 12, "num_heads": 6},
    "b": {"dim": 768, "depth": 12, "num_heads": 12},
    "l": {"dim": 1024, "depth": 24, "num_heads": 16},
    "xl": {"dim": 1152, "depth": 28, "num_heads": 16},
}
_RELEASES: dict[str, dict[str, Any]] = {
    "dit": {"clock": "diffusion", "variance": "returned"},
    "sit": {"clock": "flow", "variance": "dropped"},
}


def _load() -> type[DiT]:
    from wavemamba.models.dit.model import DiT

    return DiT


FAMILY = Family(
    "dit",
    _load,
    {
        f"{release}_{size}{patch}": EntryPoint(
            f"{sizes['depth']} blocks of width {sizes['dim']}, patch {patch}.", {**sizes, **clock, "patch_size": patch}
        )
        for release, clock in _RELEASES.items()
        for size, sizes in _SIZES.items()
        for patch in (2, 4, 8)
    },
)
