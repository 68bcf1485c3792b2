"""What the released code calls the parameters of a DiT."""

from wavemamba.models.released_names import AROUND_BLOCKS, ReleasedNames

NAMES = ReleasedNames(
    (*AROUND_BLOCKS, (".attn.", ".attention."), (".adaLN_modulation.1.", ".modulation.linear.")),
    (r"x_embedder\.", r"blocks\.0\.attn\.qkv\."),
)
