"""DiT and SiT, built from the public blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wavemamba.blocks import SharedAttention
from wavemamba.layers.part_checks import expect_part
from wavemamba.models.building import drawing_nothing
from wavemamba.models.clocks import diffusion_step
from wavemamba.models.dit.config import DiTConfig
from wavemamba.models.dit.released_names import NAMES
from wavemamba.models.patch_model import PatchDiffusionModel


class DiT(PatchDiffusionModel):
    """Diffusion transformer with adaptive layer norm.

    Args:
        config: what the model is made of.
        make_block: makes the blocks: `(config, index) ->` a module that is called as `block(x, cond)` and returns `x`,
            (B, H, W, C); None: `SharedAttention` with a plain MLP, its modulation zero at the start.

    Source: Peebles and Xie, "Scalable diffusion models with transformers", ICCV 2023; Ma et al., "SiT", ECCV 2024.
    """

    family = "dit"
    config: DiTConfig
    config_class = DiTConfig
    parts = ("make_block",)
    builds_on_meta = True
    released_names = NAMES

    def __init__(self, config: DiTConfig, *, make_block: Callable[[DiTConfig, int], nn.Module] | None = None) -> None:
        with drawing_nothing():
            super().__init__(config, make_block=make_block)
            blocks = ((make_block or transformer_block)(config, i) for i in range(config.depth))
            self.blocks = nn.ModuleList(expect_part("block", block, ("x", "cond")) for block in blocks)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the released model: Xavier-uniform Linears, zero biases, modulation and output."""
        super().reset_parameters()
        if self.pos_embed.is_meta:
            return
        self.reset_linears_by_width()
        for block in self.blocks:
            if isinstance(block, SharedAttention) and block.modulation is not None:
                block.modulation.zero_()
        self.reset_embeddings()

    def embed_condition(self, t: Tensor, y: Tensor | None, dtype: torch.dtype | None = None) -> Any:
        """See `PatchDiffusionModel.embed_condition`; the time's embedding reads the network's own clock."""
        clock = t if self.config.clock == "flow" else diffusion_step(t)
        return super().embed_condition(clock, y, dtype)

    def forward_head(self, tokens: Tensor, cond: Any) -> Tensor:
        """See `PatchDiffusionModel.forward_head`; a variance that is dropped is left out."""
        return super().forward_head(tokens, cond)[:, : self.out_chans]


def transformer_block(config: DiTConfig, index: int) -> SharedAttention:
    """A DiT's block; the index says which, and all are alike."""
    return SharedAttention(
        config.dim, config.dim, num_heads=config.num_heads, mlp_ratio=config.mlp_ratio, gated_mlp=False
    )
