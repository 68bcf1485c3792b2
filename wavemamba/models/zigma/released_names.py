"""What the released code calls the parameters of a ZigMa."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemamba.models.released_names import AROUND_BLOCKS, MIXER, ReleasedNames

if TYPE_CHECKING:
    from wavemamba.models.zigma.config import ZigMaConfig

_BLOCKS = (
    (".adaLN_modulation.1.", ".modulation.linear."),
    (".msa.to_q.", ".cross.q."),
    (".msa.to_k.", ".cross.k."),
    (".msa.to_v.", ".cross.v."),
    (".msa.to_out.0.", ".cross.proj."),
)
_AROUND = tuple(pair for pair in AROUND_BLOCKS if not pair[0].startswith("final_layer."))
_SIGN = (r"x_embedder\.", r"blocks\.0\.mixer\.A_log", r"norm_f\.")


def names_for(config: ZigMaConfig) -> ReleasedNames:
    """The names of a model with this configuration: text has its own layer."""
    text = (("y_embedder.", "text_embed."),) if config.context_dim is not None else ()
    ends = (("final_layer.linear.", "head."), ("norm_f.", "final_norm."))
    return ReleasedNames((*_AROUND, *text, *ends, *_BLOCKS, *MIXER), _SIGN)
