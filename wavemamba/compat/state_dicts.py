"""State dicts of mamba-ssm's `Mamba` (and Vision Mamba's) and `Mamba2`, and of our mixers, each as the other's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wavemamba.errors import CheckpointError

# What a direction calls its parts: mamba-ssm's name, whose backward direction inserts "_b", and ours.
_PARTS = (
    ("conv1d{}.weight", "conv_weight"),
    ("conv1d{}.bias", "conv_bias"),
    ("x_proj{}.weight", "x_proj.weight"),
    ("dt_proj{}.weight", "dt_proj.weight"),
    ("dt_proj{}.bias", "dt_bias"),
    ("A{}_log", "A_log"),
    ("D{}", "D"),
)
_SAME = ("in_proj.weight", "out_proj.weight")
_TABLE = {
    **{name: name for name in _SAME},
    **{
        theirs.format(end): f"directions.{direction}.{ours}"
        for direction, end in enumerate(("", "_b"))
        for theirs, ours in _PARTS
    },
}
_TABLE2 = {
    **{name: name for name in (*_SAME, "norm.weight")},
    "conv1d.weight": "directions.0.conv_weight",
    "conv1d.bias": "directions.0.conv_bias",
    **{name: f"directions.0.{name}" for name in ("dt_bias", "A_log", "D")},
}


def from_mamba(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `Mamba` as that of a `MambaMixer` (`bimamba_type="v2"`: of one with two directions).

    Args:
        state: mamba-ssm's names; `conv1d.weight` is (E, 1, width). A convolution without bias gets one of zeros.

    Raises:
        CheckpointError: a name has no place in a `MambaMixer`.
    """
    _refuse_others(state, _TABLE, "mamba_ssm.Mamba with bias=False and bimamba_type 'none' or 'v2'")
    return _renamed(state, _TABLE)


def to_mamba(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `MambaMixer` as that of a `Mamba`; two directions are `bimamba_type="v2"`.

    Raises:
        CheckpointError: a name has no place in a `Mamba`, such as those of `conditioning="conv_state"`.
    """
    return _renamed_back(state, _TABLE, "wavemamba.MambaMixer with conditioning='none'")


def from_mamba2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `Mamba2` as that of a `Mamba2Mixer`.

    Args:
        state: mamba-ssm's names, of a module with `ngroups=1` and `norm_before_gate=False`, which no shape tells;
            `conv1d.weight` is (E + 2 N, 1, width). A convolution without bias gets one of zeros.

    Raises:
        CheckpointError: a name has no place in a `Mamba2Mixer`, or there is a skip factor a channel.
    """
    _refuse_others(state, _TABLE2, "mamba_ssm.Mamba2 with bias=False")
    if "D" in state and "dt_bias" in state and state["D"].shape != state["dt_bias"].shape:
        raise CheckpointError(
            f"D: expected one skip factor a head, {tuple(state['dt_bias'].shape)}, got {tuple(state['D'].shape)}; a "
            "Mamba2 with D_has_hdim=True has no place in a Mamba2Mixer"
        )
    return _renamed(state, _TABLE2)


def to_mamba2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `Mamba2Mixer` of one direction as that of a `Mamba2` with its sizes.

    Raises:
        CheckpointError: a name has no place in a `Mamba2`, such as those of `bidirectional=True`.
    """
    return _renamed_back(state, _TABLE2, "wavemamba.layers.Mamba2Mixer of one direction with conditioning='none'")


def _renamed(state: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {table[name]: tensor.squeeze(1) if tensor.dim() == 3 else tensor for name, tensor in state.items()}
    for name, weight in list(renamed.items()):
        if name.endswith(".conv_weight"):
            renamed.setdefault(name.replace("weight", "bias"), torch.zeros_like(weight[:, 0]))
    return renamed


def _renamed_back(state: Mapping[str, Tensor], table: Mapping[str, str], whose: str) -> dict[str, Tensor]:
    back = {ours: theirs for theirs, ours in table.items()}
    _refuse_others(state, back, whose)
    return {
        back[name]: tensor.unsqueeze(1) if name.endswith("conv_weight") else tensor for name, tensor in state.items()
    }


def _refuse_others(state: Mapping[str, Tensor], known: Mapping[str, str], whose: str) -> None:
    others = [name for name in state if name not in known]
    if others:
        raise CheckpointError(f"expected the state dict of a {whose}, got also {', '.join(others[:5])}")
