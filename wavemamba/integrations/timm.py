"""The models under the same names in timm, whichever of the two libraries is imported first."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from wavemamba.errors import CheckpointError, ConfigError
from wavemamba.models.base import Model
from wavemamba.models.family import EntryPoint
from wavemamba.models.hub import download
from wavemamba.models.registry import build_model, class_of, download_published, entry_points, on_registration

__all__: list[str] = []
default_cfgs: dict[str, Any] = {}
"""What timm reads of each name when it is registered."""

_REGISTRY = "timm.models"
_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm writes them, the first that is there
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
    on_registration(_add, _expect_free)
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
        loader = spec.loader
        run: Callable[[ModuleType], None] = loader.exec_module

        def run_and_add(module: ModuleType) -> None:
            del loader.exec_module  # which then is the loader's own again
            run(module)
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            _add_all()

        loader.exec_module = run_and_add  # type: ignore[method-assign]  # this loader serves this module alone
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

    if registry.is_model(name):
        return  # registered anew: what timm calls finds the new one by its name
    build.__name__ = build.__qualname__ = name
    build.__doc__ = entry.summary
    if entry.build is None:
        default_cfgs.update(registry.generate_default_cfgs({name: _default_cfg(name, entry)}))
    registry.register_model(build)


def _expect_free(name: str) -> None:
    if _taken_by_timm(name):
        raise ConfigError(f"model: expected a name that timm does not have, got {name!r}; timm keeps its own")


def _taken_by_timm(name: str) -> bool:
    registry = sys.modules.get(_REGISTRY)
    return bool(registry and registry.is_model(name) and registry.model_entrypoint(name).__module__ != __name__)


def _default_cfg(name: str, entry: EntryPoint) -> dict[str, Any]:
    cls = class_of(name)
    options = {option: value for option, value in entry.defaults.items() if option not in cls.parts}
    published = entry.published
    return {
        "architecture": name,
        "hf_hub_id": published.repository if published else None,
        "hf_hub_filename": published.file if published else None,
        "first_conv": cls.first_conv,
        "classifier": cls.classifier,
        **cls.describe_input(cls.config_class(**options)),
    }


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Model:
    """Build a model with what `timm.create_model` passes on."""
    cfg = _plain(options.pop("pretrained_cfg", None)) | dict(options.pop("pretrained_cfg_overlay", None) or {})
    cache_dir = options.pop("cache_dir", None)
    options.pop("pretrained_model_args", None)  # which timm has put among the options too
    known = entry_points()[name]
    own = class_of(name).config_class.option_names() if known.build is None else ()
    for option, neutral in _NEUTRAL.items():
        if option not in own and options.get(option, neutral) != neutral:
            raise ConfigError(f"{option}: expected {neutral!r}, as {name} has no such option, got {options[option]!r}")
        if option not in own:
            options.pop(option, None)
    weights = _weights(name, cfg, cache_dir) if pretrained else None
    model = build_model(name, weights, options)
    model.told_of_weights = {key: value for key, value in cfg.items() if key != "state_dict"}
    return model


def _plain(cfg: Any) -> dict[str, Any]:
    if not cfg:
        return {}
    if isinstance(cfg, str):
        raise ConfigError(
            f"pretrained_cfg: expected a dict, as these models have no tags, got {cfg!r}; leave the tag out"
        )
    return dict(cfg) if isinstance(cfg, Mapping) else cfg.to_dict()


def _weights(name: str, cfg: Mapping[str, Any], cache_dir: str | Path | None) -> Any:
    """Where a `pretrained_cfg` says that the weights are; what it does not say is as published."""
    for key in ("url", "custom_load"):
        if cfg.get(key):
            raise ConfigError(f"{key}: expected file, hf_hub_id or state_dict in pretrained_cfg, got {cfg[key]!r}")
    if cfg.get("state_dict"):
        return cfg["state_dict"]
    if cfg.get("file"):
        return _in_folder(Path(cfg["file"]))
    if not cfg.get("hf_hub_id"):
        return download_published(name, cache_dir)
    repository, _, revision = cfg["hf_hub_id"].partition("@")
    if file := cfg.get("hf_hub_filename"):
        return download(repository, file, revision or None, cache_dir)
    try:
        return download(repository, _FILES[0], revision or None, cache_dir)
    except CheckpointError:
        return download(repository, _FILES[1], revision or None, cache_dir)


def _in_folder(path: Path) -> Path:
    return next((path / file for file in _FILES if (path / file).is_file()), path)
