"""State dicts of `mamba_ssm.Mamba` (and Vision Mamba's) and of `wavemamba.MambaMixer`, each as the other's."""

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


def from_mamba(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `Mamba` as that of a `MambaMixer` (`bimamba_type="v2"`: of one with two directions).

    Args:
        state: mamba-ssm's names; `conv1d.weight` is (E, 1, width). A convolution without bias gets one of zeros.

    Raises:
        CheckpointError: a name has no place in a `MambaMixer`.
    """
    _refuse_others(state, _TABLE, "mamba_ssm.Mamba with bias=False and bimamba_type 'none' or 'v2'")
    renamed = {_TABLE[name]: tensor.squeeze(1) if tensor.dim() == 3 else tensor for name, tensor in state.items()}
    for direction in range(2):
        weight = renamed.get(f"directions.{direction}.conv_weight")
        if weight is not None:
            renamed.setdefault(f"directions.{direction}.conv_bias", torch.zeros_like(weight[:, 0]))
    return renamed


def to_mamba(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `MambaMixer` as that of a `Mamba`; two directions are `bimamba_type="v2"`.

    Raises:
        CheckpointError: a name has no place in a `Mamba`, such as those of `conditioning="conv_state"`.
    """
    back = {ours: theirs for theirs, ours in _TABLE.items()}
    _refuse_others(state, back, "wavemamba.MambaMixer with conditioning='none'")
    return {
        back[name]: tensor.unsqueeze(1) if name.endswith("conv_weight") else tensor for name, tensor in state.items()
    }


def _refuse_others(state: Mapping[str, Tensor], known: Mapping[str, str], whose: str) -> None:
    others = [name for name in state if name not in known]
    if others:
        raise CheckpointError(f"expected the state dict of a {whose}, got also {', '.join(others[:5])}")
