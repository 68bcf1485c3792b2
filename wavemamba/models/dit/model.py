"""DiT and SiT, built from the public blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wavemamba.blocks import SharedAttention
from wavemamba.layers.part_checks import expect_part
from wavemamba.models.building import drawing_nothing
from wavemamba.models.dit.config import DiTConfig
from wavemamba.models.dit.released_names import NAMES
from wavemamba.models.patch_model import PatchDiffusionModel

_LAST_STEP = 999


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

    def __init__(self, config: DiTConfig, *, make_block: Callable[[DiTConfig, int], nn.Module] | None = None) -> None:
        with drawing_nothing():
            super().__init__(config, make_block=make_block)
            self.pos_embed.requires_grad_(config.learn_positions)
            blocks = ((make_block or transformer_block)(config, i) for i in range(config.depth))
            self.blocks = nn.ModuleList(expect_part("block", block, ("x", "cond")) for block in blocks)
        self.reset_parameters()

    def import_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[str], str]]:
        """See `Model.import_state`; the released code's names are known."""
        if not NAMES.are_in(state):
            return dict(state), str
        renamed, called = NAMES.rename(state, self.config.grid_size)
        renamed.setdefault("pos_embed", self.pos_embed.detach())  # computed, so that some files leave it out
        return renamed, called

    def reset_parameters(self) -> None:
        """Initialise as the released model: Xavier-uniform Linears, zero biases, modulation and output."""
        super().reset_parameters()
        if self.pos_embed.is_meta:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            if isinstance(block, SharedAttention) and block.modulation is not None:
                block.modulation.zero_()
        self.reset_embeddings()

    def embed_condition(self, t: Tensor, y: Tensor | None, dtype: torch.dtype | None = None) -> Any:
        """See `PatchDiffusionModel.embed_condition`; the time's embedding reads the network's own clock."""
        clock = t if self.config.clock == "flow" else _LAST_STEP * (1 - t)
        return super().embed_condition(clock, y, dtype)

    def run_blocks(self, hidden: Tensor, cond: Any, keep: Callable[[int, Tensor], None]) -> Tensor:
        """See `PatchDiffusionModel.run_blocks`."""
        for index, block in enumerate(self.blocks):
            hidden = self.run_block(block, hidden, cond)
            keep(index, hidden)
        return hidden

    def forward_head(self, tokens: Tensor, cond: Any) -> Tensor:
        """See `PatchDiffusionModel.forward_head`; a variance that is dropped is left out."""
        return super().forward_head(tokens, cond)[:, : self.out_chans]


def transformer_block(config: DiTConfig, index: int) -> SharedAttention:
    """A DiT's block; the index says which, and all are alike."""
    return SharedAttention(
        config.dim, config.dim, num_heads=config.num_heads, mlp_ratio=config.mlp_ratio, gated_mlp=False
    )
