"""The models under the same names in timm, whichever of the two libraries is imported first."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from wavemamba.errors import ConfigError
from wavemamba.models.base import Model
from wavemamba.models.family import EntryPoint
from wavemamba.models.registry import create_model, entry_points, on_registration

__all__: list[str] = []
default_cfgs: dict[str, Any] = {}
"""What timm reads of each name when it is registered."""

_REGISTRY = "timm.models"
# What timm and its scripts pass to every model, at the value that asks for nothing.
_NEUTRAL: dict[str, Any] = {
    "drop_rate": 0.0,
    "drop_block_rate": 0.0,
    "attn_drop_rate": 0.0,
    "proj_drop_rate": 0.0,
    "features_only": False,
    "global_pool": "",
    "scriptable": False,
    "exportable": False,
    "no_jit": False,
}


def register_in_timm() -> None:
    """Make every model known to timm: at once where timm is imported, otherwise as soon as it is."""
    on_registration(_add)
    if hasattr(sys.modules.get(_REGISTRY), "register_model"):
        _add_all()
    else:
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds nothing itself; has the models added once `timm.models` is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's own spec, whose loader adds the models at its end."""
        if fullname != _REGISTRY:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run: Callable[[ModuleType], None] = spec.loader.exec_module

        def run_and_add(module: ModuleType) -> None:
            run(module)
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            _add_all()

        spec.loader.exec_module = run_and_add  # type: ignore[method-assign]  # this loader serves this module alone
        return spec


def _add_all() -> None:
    for name, entry in entry_points().items():
        if _taken_by_timm(name):
            warnings.warn(f"timm has a model {name!r} of its own, and keeps it under this name", stacklevel=2)
        else:
            _add(name, entry)


def _add(name: str, entry: EntryPoint) -> None:
    registry = sys.modules.get(_REGISTRY)
    if registry is None:
        return

    def build(pretrained: bool = False, **options: Any) -> Model:
        return _create(name, pretrained, options)

    if _taken_by_timm(name):
        raise ConfigError(f"model: expected a name that timm does not have, got {name!r}; timm keeps its own")
    if registry.is_model(name):
        return  # registered anew: what timm calls finds the new one by its name
    build.__name__ = build.__qualname__ = name
    build.__doc__ = entry.summary
    published = entry.published
    default_cfgs.update(
        registry.generate_default_cfgs(
            {
                name: {
                    "architecture": name,
                    "hf_hub_id": published.repository if published else None,
                    "hf_hub_filename": published.file if published else None,
                    **_known_of_input(entry),
                }
            }
        )
    )
    registry.register_model(build)


def _taken_by_timm(name: str) -> bool:
    registry = sys.modules[_REGISTRY]
    return bool(registry.is_model(name) and registry.model_entrypoint(name).__module__ != __name__)


def _known_of_input(entry: EntryPoint) -> dict[str, Any]:
    return {}


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Model:
    changes, weights = _sources(name, pretrained, options)
    for option, neutral in _NEUTRAL.items():
        if option in options and options[option] == neutral:
            del options[option]
    model = create_model(name, **options) if weights is None else create_model(name, checkpoint_path=weights, **options)
    del changes
    return model


def _sources(name: str, pretrained: bool, options: dict[str, Any]) -> tuple[dict[str, Any], str | Path | None]:
    for option in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained_model_args"):
        options.pop(option, None)
    if pretrained:
        options["pretrained"] = True
    return {}, None
