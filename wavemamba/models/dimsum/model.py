"""The DiMSUM diffusion model, built from the public blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from wavemamba.dtypes import accumulation_dtype
from wavemamba.layers import AdaLN, make_norm
from wavemamba.layers.part_checks import expect_part, expect_result
from wavemamba.models.building import drawing_nothing
from wavemamba.models.dimsum import parts
from wavemamba.models.dimsum.config import DiMSUMConfig
from wavemamba.models.dimsum.plan import BlockSpec, layer_plan
from wavemamba.models.dimsum.released_names import is_released, rename
from wavemamba.models.part_registry import PART_KINDS, users_parts
from wavemamba.models.patch_model import PatchDiffusionModel
from wavemamba.models.record import describe


class DiMSUM(PatchDiffusionModel):
    """Diffusion Mamba over space and frequency.

    Args:
        config: what the model is made of.
        make_block: makes the blocks instead of `wavemamba.models.make_block`: `(config, spec) ->` a module that is
            called as `block(x, cond, residual)` and returns `(x, residual)`, as a `DiMSUMBlock` does.

    Source: Phung et al., "DiMSUM: Diffusion Mamba", NeurIPS 2024, arXiv 2411.04168.
    """

    family = "dimsum"
    config: DiMSUMConfig
    config_class = DiMSUMConfig
    parts = ("make_block",)
    builds_on_meta = True

    def __init__(
        self, config: DiMSUMConfig, *, make_block: Callable[[DiMSUMConfig, BlockSpec], nn.Module] | None = None
    ) -> None:
        with drawing_nothing():
            super().__init__(config, make_block=make_block)
            self.positions = parts.make_positions(config)
            if self.positions is not None:
                self.drop_position_table()
            self.plan = layer_plan(config)
            blocks = ((make_block or parts.make_block)(config, spec) for spec in self.plan)
            self.blocks = nn.ModuleList(expect_part("block", block, ("x", "cond", "residual")) for block in blocks)
            first_places = {spec.attention: spec for spec in reversed(self.plan) if spec.attention is not None}
            self.attentions = nn.ModuleList(parts.make_attention(config, first_places[i]) for i in sorted(first_places))
            self.final_norm = (
                make_norm(parts.make_norms(config, self.plan[-1]), config.dim) if config.final_norm else None
            )
        self.reset_parameters()

    def needs(self) -> dict[str, str]:
        """See `Model.needs`; registered parts too."""
        names = {kind: getattr(self.config, kind) for kind in PART_KINDS}
        own = {kind: f"{names[kind]}: {describe(make)}" for kind, make in users_parts(names).items()}
        return {**super().needs(), **own}

    def import_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[str], str]]:
        """See `Model.import_state`; the released code's names are known."""
        if not is_released(state):
            return dict(state), str
        return rename(state, self.config, len(self.attentions), has_table=self.has_position_table)

    def reset_parameters(self) -> None:
        """Initialise as the released model: see the docstrings of the parts.

        Biases of Linear layers are zero; the mixers' output projections are divided by the square root of the depth;
        the blocks' own modulation and the output layer are zero.
        """
        super().reset_parameters()
        if self.patch_embed.proj.weight.is_meta:
            return
        self.reset_linears_by_depth()
        for block in self.blocks:
            if isinstance(modulation := getattr(block, "modulation", None), AdaLN):
                modulation.zero_()
        self.reset_embeddings()

    def place(self, tokens: Tensor, cond: Any) -> Tensor:
        """See `PatchDiffusionModel.place`."""
        if self.positions is None:
            return super().place(tokens, cond)
        return expect_result("positions", self.positions(tokens, cond), tuple(tokens.shape), "(B, H, W, C)")

    def run_blocks(self, hidden: Tensor, cond: Any, keep: Callable[[int, Tensor], None]) -> Tensor:
        """See `PatchDiffusionModel.run_blocks`."""
        residual: Tensor | None = None
        for block, spec in zip(self.blocks, self.plan, strict=True):
            hidden, residual = self.run_block(block, hidden, cond, residual)
            if spec.attention is not None:
                hidden = self.run_block(self.attentions[spec.attention], hidden, cond)
            keep(spec.index, hidden)
        if self.final_norm is not None:
            assert residual is not None
            hidden = self.final_norm(residual + hidden.to(accumulation_dtype(hidden.dtype))).to(hidden.dtype)
        return hidden

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `PatchDiffusionModel.group_matcher`; a transformer block comes where it runs first."""
        first_place: dict[int, int] = {}
        for spec in self.plan:
            if spec.attention is not None:
                first_place.setdefault(spec.attention, spec.index)
        blocks: list[tuple[str, tuple[float, ...] | None]] = [(r"^blocks\.(\d+)", None)]
        blocks += [(rf"^attentions\.{i}\.", (block + 0.5,)) for i, block in first_place.items()]
        blocks.append((r"^final_norm|^head", (99999,)))
        return {**super().group_matcher(coarse), "blocks": blocks}
