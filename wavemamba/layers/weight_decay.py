"""Which parameters weight decay would harm."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn


class UndecayedParameters(nn.Module):
    """Base of a module that has parameters which weight decay would harm.

    They carry the mark `_no_weight_decay = True`, as mamba-ssm's do, also after the module was copied, moved or
    loaded.
    """

    undecayed: ClassVar[tuple[str, ...]] = ()
    """The names of these parameters."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter; see `nn.Module`."""
        super().register_parameter(name, param)
        self._mark()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        module = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._mark()
        return module

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark()

    def _mark(self) -> None:
        for name in self.undecayed:
            if (parameter := self._parameters.get(name)) is not None:
                parameter._no_weight_decay = True  # type: ignore[attr-defined]  # tensors carry attributes


def undecayed_names(module: nn.Module) -> set[str]:
    """Names of the parameters of a network that weight decay would harm: `A_log` and `D` of its mixers, and what else
    is marked `_no_weight_decay`.

    What timm asks of a model: `def no_weight_decay(self): return undecayed_names(self)`.
    """
    names = set()
    for name, parameter in module.named_parameters():
        path, local = _owner_and_name(name)
        if getattr(parameter, "_no_weight_decay", False) or local in getattr(
            module.get_submodule(path), "undecayed", ()
        ):
            names.add(name)
    return names


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups for an optimizer: with weight decay, and without.

    Without: what `undecayed_names` says, what the network's own `no_weight_decay()` names, and every vector or scalar
    (biases, weights of norms).

    Args:
        module: a network.
        weight_decay: for the first group.

    Returns:
        Groups `{"params": [...], "weight_decay": ...}`; an empty one is left out.
    """
    names = undecayed_names(module)
    if callable(own := getattr(module, "no_weight_decay", None)):
        names |= set(own())
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if name in names or parameter.dim() < 2 else weight_decay
            groups.setdefault(decay, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]


def _owner_and_name(name: str) -> tuple[str, str]:
    """The path of the module that a parameter belongs to, and the parameter's own name, also where it is derived."""
    path, parametrised, original = name.rpartition("parametrizations.")
    if parametrised:
        return path.removesuffix("."), original.split(".")[0]
    path, _, local = name.rpartition(".")
    return path, local.removesuffix("_orig")  # what pruning calls it
