"""Names of a released code's parameters, as this library's and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

# What the released diffusion models over patches call the parts around their blocks.
AROUND_BLOCKS = (
    ("x_embedder.", "patch_embed."),
    ("t_embedder.", "time_embed."),
    ("y_embedder.embedding_table.", "label_embed.table."),
    ("final_layer.adaLN_modulation.1.", "head.modulation."),
    ("final_layer.linear.", "head.linear."),
)

# What mamba-ssm, and Vision Mamba's second direction, call the parts of a mixer.
MIXER = tuple(
    pair
    for direction, end in ((1, "_b"), (0, ""))
    for pair in (
        (f".mixer.A{end}_log", f".mixer.directions.{direction}.A_log"),
        *((f".mixer.conv1d{end}.{part}", f".mixer.directions.{direction}.conv_{part}") for part in ("weight", "bias")),
        (f".mixer.dt_proj{end}.bias", f".mixer.directions.{direction}.dt_bias"),
        *((f".mixer.{part}{end}.", f".mixer.directions.{direction}.{part}.") for part in ("x_proj", "dt_proj")),
        (f".mixer.D{end}", f".mixer.directions.{direction}.D"),
    )
)


class ReleasedNames:
    """A table of beginnings and parts of names.

    Args:
        pairs: released and own spelling, the first that is found in a name counts; a pair that begins with a dot is
            found anywhere, others at the beginning.
        sign: beginnings of names by which the family is known, all of which must be there.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], sign: tuple[str, ...]) -> None:
        self.pairs, self.sign = tuple(pairs), sign

    def are_in(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the names of a state are these."""
        return all(any(re.match(sign, name) for name in state) for sign in self.sign)

    def own(self, released: str) -> str:
        """This library's name of a released parameter."""
        return _replaced(released, self.pairs)

    def released(self, own: str) -> str:
        """The released name of a parameter of this library."""
        return _replaced(own, [(b, a) for a, b in self.pairs])

    def rename(
        self, state: Mapping[str, Tensor], grid: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Callable[[str], str]]:
        """Give released parameters this library's names and shapes.

        Args:
            state: the released names.
            grid: (H, W) of the positions, which the released codes keep as (1, H * W, C).

        Returns:
            The parameters, and a function from a name of this library to the released one.
        """
        renamed: dict[str, Tensor] = {}
        for name, tensor in state.items():
            own = self.own(name)
            if own == "pos_embed" and tensor.dim() == 3 and tensor.shape[1] == grid[0] * grid[1]:
                tensor = tensor.unflatten(1, grid)
            if own.endswith(".conv_weight") and tensor.dim() == 3:
                tensor = tensor.squeeze(1)  # (E, 1, width): a depthwise convolution has one input channel
            renamed[own] = tensor
        return renamed, self.released


def _replaced(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        whole = not old.endswith((".", "_"))  # the last part of a name, so that `D` is not the beginning of `D_b`
        if old.startswith(".") and (name.endswith(old) if whole else old in name):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name.removeprefix(old)
    return name
