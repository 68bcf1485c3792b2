"""ZigMa, built from the public layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wavemamba.blocks import ZigMaBlock
from wavemamba.checks import expect_floating, expect_shape
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ShapeError
from wavemamba.layers import CrossAttention, DropPath, MambaMixer, make_norm
from wavemamba.layers.embeddings import unpatchify
from wavemamba.layers.norm import plain_layer_norm
from wavemamba.layers.part_checks import expect_part
from wavemamba.models.building import drawing_nothing
from wavemamba.models.description import Condition
from wavemamba.models.patch_model import PatchDiffusionModel
from wavemamba.models.zigma.config import ZigMaConfig
from wavemamba.models.zigma.released_names import names_for
from wavemamba.scans import ScanOrder, list_scan_orders, scan_order

_STEPS = 1000


class TextCondition(NamedTuple):
    """What the blocks of a model with text are told."""

    vector: Tensor
    """(B, C): the time, and the mean of the text's tokens."""
    tokens: Tensor
    """(B, T, C)."""


class ZigMa(PatchDiffusionModel):
    """Mamba blocks that walk the image along another path each.

    Args:
        config: what the model is made of.
        make_block: makes the blocks: `(config, index) ->` a module that is called as
            `block(x, cond, residual, context)` and returns `(x, residual)`; None: `ZigMaBlock`.

    Source: Hu et al., "ZigMa: A DiT-style zigzag Mamba diffusion model", ECCV 2024, arXiv 2403.13802.
    """

    family = "zigma"
    config: ZigMaConfig
    config_class = ZigMaConfig
    parts = ("make_block",)
    builds_on_meta = True
    output_layer = "head"

    def __init__(
        self, config: ZigMaConfig, *, make_block: Callable[[ZigMaConfig, int], nn.Module] | None = None
    ) -> None:
        with drawing_nothing():
            super().__init__(config, make_block=make_block)
            self.released_names = names_for(config)
            self.text_embed = None if config.context_dim is None else nn.Linear(config.context_dim, config.dim)
            blocks = ((make_block or zigzag_block)(config, i) for i in range(config.depth))
            called = ("x", "cond", "residual", "context")
            self.blocks = nn.ModuleList(expect_part("block", block, called) for block in blocks)
            self.drop_path = DropPath(config.drop_path_rate)
            self.final_norm = make_norm("rms", config.dim)
            self.head = nn.Linear(config.dim, self.maps_of_a_token * config.predicted_channels)
        self.reset_parameters()

    @property
    def condition(self) -> Condition:
        """See `DiffusionModel.condition`; text tokens take the place of a class."""
        if self.config.context_dim is None:
            return super().condition
        return Condition("tokens", width=self.config.context_dim)

    def reset_parameters(self) -> None:
        """Initialise as the released model: zero biases and modulations, mixers' outputs over the root of the depth."""
        super().reset_parameters()
        if self.pos_embed.is_meta:
            return
        self.reset_linears_by_depth()
        for block in self.blocks:
            if isinstance(block, ZigMaBlock):
                block.modulation.zero_()
        self.reset_embeddings()
        if self.config.positions != "sincos":
            nn.init.zeros_(self.pos_embed)

    def reset_head(self) -> None:
        """Initialise the output layer: zero bias."""
        assert isinstance(self.head, nn.Linear)
        self.head.reset_parameters()
        nn.init.zeros_(self.head.bias)

    def check_condition(self, y: Tensor | None, batch: int) -> None:
        """See `PatchDiffusionModel.check_condition`; text is (B, T, d)."""
        width = self.config.context_dim
        if width is None:
            super().check_condition(y, batch)
            return
        if y is None:
            raise ShapeError(f"y: expected text tokens (B, T, {width}), got None; the model was built with context_dim")
        expect_shape("y", y, (batch, None, width), "(B, T, d)", "pass the text encoder's tokens")
        expect_floating("y", y)

    def embed_condition(self, t: Tensor, y: Tensor | None, dtype: torch.dtype | None = None) -> Any:
        """See `PatchDiffusionModel.embed_condition`; the time's embedding reads 1000 t."""
        if self.text_embed is None or y is None:
            return super().embed_condition(_STEPS * t, y, dtype)
        tokens = self.text_embed(y)
        return TextCondition(self.time_embed(_STEPS * t, dtype) + tokens.mean(1), tokens)

    def run_blocks(self, hidden: Tensor, cond: Any, keep: Callable[[int, Tensor], None]) -> Tensor:
        """See `PatchDiffusionModel.run_blocks`."""
        vector, context = cond if isinstance(cond, TextCondition) else (cond, None)
        residual: Tensor | None = None
        for index, block in enumerate(self.blocks):
            hidden, residual = self.run_block(block, hidden, vector, residual, context)
            keep(index, hidden)
        total = self.drop_path(hidden).to(accumulation_dtype(hidden.dtype))
        normed: Tensor = self.final_norm(total if residual is None else residual + total, hidden.dtype)
        return normed

    def forward_head(self, tokens: Tensor, cond: Any) -> Tensor:
        """See `PatchDiffusionModel.forward_head`; the output layer is not conditioned."""
        return unpatchify(self.head(plain_layer_norm(tokens)), self.config.patch_shape)

    def no_weight_decay(self) -> set[str]:
        """See `PatchDiffusionModel.no_weight_decay`."""
        return {name for name in super().no_weight_decay() if name in dict(self.named_parameters())}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `PatchDiffusionModel.group_matcher`."""
        blocks: list[tuple[str, tuple[float, ...] | None]] = [(r"^blocks\.(\d+)", None)]
        blocks.append((r"^final_norm|^head", (99999,)))
        stem = r"^pos_embed|^patch_embed|^time_embed|^label_embed|^text_embed"
        return {**super().group_matcher(coarse), "stem": stem, "blocks": blocks}


def zigzag_block(config: ZigMaConfig, index: int) -> ZigMaBlock:
    """Block number `index` of a ZigMa."""
    cross = None
    if config.context_dim is not None:
        cross = CrossAttention(config.dim, config.context_heads, config.context_head_dim)
    # Block i adds what block i - 1 returned, so the drop rate is that of the block before.
    rate = config.drop_path_rate * max(index - 1, 0) / max(config.depth - 1, 1)
    return ZigMaBlock(
        config.dim,
        config.dim,
        scan=_scan_of(config, index),
        mixer=MambaMixer(config.dim, d_state=config.d_state, bidirectional=config.bidirectional),
        cross=cross,
        drop_path=rate,
    )


def _scan_of(config: ZigMaConfig, index: int) -> ScanOrder:
    if config.scan in list_scan_orders(option="path"):
        return scan_order(config.scan, path=index % 8)
    if config.scan == "hilbert":
        return scan_order("hilbert", transpose=index % 2 == 1, reverse=index % 4 >= 2)
    return scan_order(config.scan)
