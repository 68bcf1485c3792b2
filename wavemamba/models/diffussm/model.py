"""DiffuSSM, built from the public blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wavemamba.blocks import DiffuSSMBlock
from wavemamba.layers import S4DMixer
from wavemamba.layers.part_checks import expect_part
from wavemamba.models.building import drawing_nothing
from wavemamba.models.clocks import diffusion_step
from wavemamba.models.diffussm.config import DiffuSSMConfig
from wavemamba.models.patch_model import PatchDiffusionModel


class DiffuSSM(PatchDiffusionModel):
    """Scans over every pixel of the latent, dense layers over M neighbours at once, no attention.

    Args:
        config: what the model is made of.
        make_block: makes the blocks: `(config, index) ->` a module that is called as `block(x, cond)` and returns `x`,
            (B, H, W, C), where W counts tokens of M steps; None: `DiffuSSMBlock`, its modulation zero at the start.

    Source: Yan, Gu and Rush, "Diffusion models without attention", 2023, arXiv 2311.18257.
    """

    family = "diffussm"
    config: DiffuSSMConfig
    config_class = DiffuSSMConfig
    parts = ("make_block",)
    builds_on_meta = True

    def __init__(
        self, config: DiffuSSMConfig, *, make_block: Callable[[DiffuSSMConfig, int], nn.Module] | None = None
    ) -> None:
        with drawing_nothing():
            super().__init__(config, make_block=make_block)
            blocks = ((make_block or hourglass_block)(config, i) for i in range(config.depth))
            self.blocks = nn.ModuleList(expect_part("block", block, ("x", "cond")) for block in blocks)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as a DiT: Xavier-uniform Linears, zero biases, modulations and output."""
        super().reset_parameters()
        if self.pos_embed.is_meta:
            return
        self.reset_linears_by_width()
        for block in self.blocks:
            if isinstance(block, DiffuSSMBlock) and block.modulation is not None:
                block.modulation.zero_()
        self.reset_embeddings()

    def embed_condition(self, t: Tensor, y: Tensor | None, dtype: torch.dtype | None = None) -> Any:
        """See `PatchDiffusionModel.embed_condition`; the time's embedding reads the step of a diffusion."""
        return super().embed_condition(diffusion_step(t), y, dtype)


def hourglass_block(config: DiffuSSMConfig, index: int) -> DiffuSSMBlock:
    """A DiffuSSM's block; the index says which, and all are alike."""
    forth, back = (S4DMixer(config.dim, d_state=config.d_state) for _ in range(2))
    return DiffuSSMBlock(config.dim, config.dim, shorten=config.shorten, scan=config.scan, mixer=forth, backward=back)
