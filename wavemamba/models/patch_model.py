"""Diffusion models over patches: everything around the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from wavemamba.errors import ConfigError
from wavemamba.layers import LabelEmbed, PatchEmbed, SequenceMixer, TimeEmbed, modulate
from wavemamba.layers.embeddings import resample_position, sincos_position, unpatchify
from wavemamba.layers.norm import plain_layer_norm
from wavemamba.layers.weight_decay import undecayed_names
from wavemamba.models.adapt import adapt_classes, adapt_dropout, adapt_input, adapt_output, adapt_position
from wavemamba.models.base import DiffusionModel
from wavemamba.models.config import PatchConfig
from wavemamba.models.features import chosen_blocks, in_format
from wavemamba.models.inputs import check_image_and_time, check_labels
from wavemamba.models.recompute import Recomputed
from wavemamba.models.released_names import ReleasedNames


class OutputLayer(nn.Module):
    """`Linear(LN(x) * (1 + scale) + shift)`, with shift, scale = Linear(SiLU(c)); LN without weight, eps 1e-6.

    Args:
        dim: width C.
        out: width of the result.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 2 * dim)
        self.linear = nn.Linear(dim, out)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) with cond (B, C) to (B, H, W, out)."""
        shift, scale = self.modulation(nn.functional.silu(cond)).chunk(2, dim=-1)
        y: Tensor = self.linear(modulate(plain_layer_norm(x), shift, scale))
        return y

    def zero_(self) -> None:
        """Start with an output of zero."""
        for layer in (self.modulation, self.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


class PatchDiffusionModel(Recomputed, DiffusionModel):
    """Patches as tokens with positions, a condition of time and label, blocks, and an output layer.

    A family makes `self.blocks`; where these are not called as `block(x, cond) -> x`, it defines `run_blocks`. Its
    positions are a table that is added, `pos_embed`; a family that has others gives up the table by
    `drop_position_table`, and defines `place`.

    Args:
        config: what the model is made of.
        **parts: see `Model`.
    """

    config_class = PatchConfig
    config: Any
    first_conv: ClassVar[str | None] = "patch_embed.proj"
    classifier: ClassVar[str | None] = "label_embed.table"
    output_layer: ClassVar[str] = "head.linear"
    """The Linear whose rows are the channels of a token's pixels."""
    blocks: nn.ModuleList
    released_names: ReleasedNames | None = None
    """What the released code calls the parameters; None: there is none."""

    def __init__(self, config: PatchConfig, **parts: Callable[..., nn.Module] | None) -> None:
        super().__init__(config, **parts)
        dim = config.dim
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_shape)
        self.pos_embed = nn.Parameter(torch.empty(1, *config.grid_size, dim), requires_grad=config.learns_positions)
        self.time_embed = TimeEmbed(dim)
        self.label_embed = LabelEmbed(config.num_classes, dim, config.class_dropout) if config.num_classes else None
        self.head: nn.Module = OutputLayer(dim, self.maps_of_a_token * config.predicted_channels)

    @property
    def maps_of_a_token(self) -> int:
        """How many vectors of `predicted_channels` the output layer computes of a token."""
        return math.prod(self.config.patch_shape) * self.config.head_parts

    def import_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[str], str]]:
        """See `Model.import_state`; the released code's names are known."""
        names = self.released_names
        if names is None or not names.are_in(state):
            return dict(state), str
        renamed, called = names.rename(state, self.config.grid_size)
        if not self.config.learns_positions:
            renamed.setdefault("pos_embed", self.pos_embed.detach())  # computed, so that files may leave it out
        return renamed, called

    def run_blocks(self, hidden: Tensor, cond: Any, keep: Callable[[int, Tensor], None]) -> Tensor:
        """Run all blocks.

        Args:
            hidden: (B, H, W, C), patches with their positions.
            cond: what `embed_condition` returned, (B, C).
            keep: called with the index of each block and what comes out of it, (B, H, W, C).

        Returns:
            (B, H, W, C), what the output layer reads.
        """
        for index, block in enumerate(self.blocks):
            hidden = self.run_block(block, hidden, cond)
            keep(index, hidden)
        return hidden

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict, for velocity matching, the velocity at time `t`.

        Args:
            x: (B, in_chans, h, w), sides multiples of the patch's, `config.patch_shape`.
            t: (B,), times in [0, 1]: 0 noise, 1 data.
            y: (B,) int64 class ids, up to and including the null class; None: the table's last row (the null class
                where there is one), or an unconditional model.

        Returns:
            (B, out_chans, h, w).

        Raises:
            ShapeError: a size does not fit; on the CPU also a time or a class id out of range.
        """
        tokens, cond = self._run(x, t, y)
        return self.forward_head(tokens, cond)

    def forward_features(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The tokens that the output layer reads, (B, H, W, C); the same arguments as `forward`."""
        return self._run(x, t, y)[0]

    def forward_intermediates(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        *,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: Literal["NHWC", "NCHW"] = "NCHW",
    ) -> list[Tensor]:
        """What comes out of the blocks; see `DiffusionModel.forward_intermediates`."""
        if norm:
            raise ConfigError(
                f"norm: expected False, as {type(self).__name__} norms nothing but what its output layer reads, got "
                "True; forward_features returns that"
            )
        chosen = chosen_blocks(len(self.blocks), indices)
        kept: dict[int, Tensor] = {}
        self._run(x, t, y, lambda index, hidden: kept.update({index: hidden}) if index in chosen else None)
        return in_format([kept[index] for index in chosen], output_fmt)

    def forward_head(self, tokens: Tensor, cond: Any) -> Tensor:
        """Map tokens (B, H, W, C) and the condition (B, C) to the output (B, out_chans, h, w)."""
        patches: Tensor = self.head(tokens, cond)
        return unpatchify(patches, self.config.patch_shape)

    def check_condition(self, y: Tensor | None, batch: int) -> None:
        """Check what `forward` is told beside image and time; here class ids (B,).

        Raises:
            ShapeError: it does not fit.
        """
        check_labels(self.config, y, batch)

    def embed_condition(self, t: Tensor, y: Tensor | None, dtype: torch.dtype | None = None) -> Any:
        """The condition (B, C): the time's embedding, its features read in `dtype` (None: of `t`), plus the label's.

        What a family returns here is what its `run_blocks` and `forward_head` are given.
        """
        cond: Tensor = self.time_embed(t, dtype)
        if self.label_embed is not None:
            cond = cond + self.label_embed(y, t)
        return cond

    def _run(
        self, x: Tensor, t: Tensor, y: Tensor | None, keep: Callable[[int, Tensor], None] | None = None
    ) -> tuple[Tensor, Any]:
        check_image_and_time(self.config, x, t)
        self.check_condition(y, x.shape[0])
        cond = self.embed_condition(t, y, x.dtype)
        hidden = self.place(self.patch_embed(x), cond)
        return self.run_blocks(hidden, cond, keep or _forget), cond

    def place(self, tokens: Tensor, cond: Any) -> Tensor:
        """Give tokens (B, H, W, C) their positions; here the table's, resampled to the grid."""
        return tokens + resample_position(self.pos_embed, tokens.shape[1], tokens.shape[2])

    def drop_position_table(self) -> None:
        """Have no `pos_embed`: `place` does without."""
        self.register_parameter("pos_embed", None)

    @property
    def has_position_table(self) -> bool:
        """Whether there is a `pos_embed`."""
        return self._parameters["pos_embed"] is not None

    @property
    def num_features(self) -> int:
        """Width C of a token."""
        return self.config.dim

    def reset_linears_by_width(self) -> None:
        """Xavier-uniform weights of Linear layers, and zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def reset_linears_by_depth(self) -> None:
        """Zero the biases of Linear layers; divide the mixers' output projections by the root of the depth."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, SequenceMixer):
                nn.init.kaiming_uniform_(module.out_proj.weight, a=5**0.5)
                with torch.no_grad():
                    module.out_proj.weight.div_(self.config.depth**0.5)

    def reset_embeddings(self) -> None:
        """Initialise what is around the blocks: sine-cosine positions, normal(0.02) conditions, an output of zero."""
        self.patch_embed.reset_parameters()
        height, width = self.config.grid_size
        if self.has_position_table:
            with torch.no_grad():
                self.pos_embed.copy_(sincos_position(height, width, self.config.dim))
        self.time_embed.reset_parameters()
        if self.label_embed is not None:
            self.label_embed.reset_parameters()
        self.reset_head()

    def reset_head(self) -> None:
        """Initialise the output layer: zero."""
        assert isinstance(self.head, OutputLayer)
        self.head.zero_()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay would harm: `A_log`, `D`, and the embedding tables."""
        return (
            undecayed_names(self)
            | ({"pos_embed"} if self.has_position_table else set())
            | ({"label_embed.table.weight"} if self.label_embed is not None else set())
        )

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort the parameters into layers, in timm's form.

        Args:
            coarse: accepted for timm's sake; a block is one layer either way.
        """
        blocks: list[tuple[str, tuple[float, ...] | None]] = [(r"^blocks\.(\d+)", None), (r"^head", (99999,))]
        return {"stem": r"^pos_embed|^positions|^patch_embed|^time_embed|^label_embed", "blocks": blocks}

    def adapt_state(self, state: dict[str, Tensor], changed: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
        """See `Model.adapt_state`: the table of classes, the positions, the patch layer and the output layer."""
        state, notes = dict(state), []

        def change(name: str, result: tuple[Tensor, str]) -> None:
            state[name], note = result
            if note not in notes:
                notes.append(note)

        def differs(name: str, rank: int) -> bool:
            own = dict(self.named_parameters()).get(name)
            return own is not None and name in state and state[name].dim() == rank and state[name].shape != own.shape

        if "num_classes" in changed or "class_dropout" in changed:
            self._adapt_labels(state, change)
        if "img_size" in changed and differs("pos_embed", 4):
            change("pos_embed", adapt_position(state["pos_embed"], *self.config.grid_size))
        if "in_chans" in changed and differs("patch_embed.proj.weight", 4):
            change("patch_embed.proj.weight", adapt_input(state["patch_embed.proj.weight"], self.in_chans))
        for name, rank in ((f"{self.output_layer}.weight", 2), (f"{self.output_layer}.bias", 1)):
            maps = self.maps_of_a_token
            if {"in_chans", "out_chans"} & set(changed) and differs(name, rank) and _is_multiple(state[name], maps):
                change(name, adapt_output(state[name], maps, self.config.predicted_channels))
        return state, notes

    def _adapt_labels(self, state: dict[str, Tensor], change: Callable[[str, tuple[Tensor, str]], None]) -> None:
        name, bias = "label_embed.table.weight", "time_embed.mlp.2.bias"
        old = state.get(name)
        if self.label_embed is None:
            if (
                old is not None and bias in state and old.shape[1:] == state[bias].shape
            ):  # what y=None adds to the time is added for ever
                del state[name]
                change(bias, (state[bias] + old[-1], "label table: dropped, its last row added to the time's bias"))
            return
        fresh, classes = self.label_embed.table.weight, self.num_classes
        if old is not None and (old.shape == fresh.shape or old.dim() != 2 or old.shape[1] != fresh.shape[1]):
            return
        if old is not None and {old.shape[0], fresh.shape[0]} == {classes, classes + 1}:
            change(name, adapt_dropout(old, fresh, classes))
        else:
            change(name, adapt_classes(old, fresh, classes))

    def get_classifier(self) -> nn.Module | None:
        """The table of class vectors."""
        return self.label_embed

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the table of class vectors by a fresh one.

        Args:
            num_classes: classes, without the null class; 0: make the model unconditional.
            global_pool: accepted for timm's sake; a diffusion model pools nothing, so only None is valid.

        Raises:
            ConfigError: `num_classes` is no int >= 0, or `global_pool` is not None.
        """
        if global_pool is not None:
            raise ConfigError(f"global_pool: expected None, got {global_pool!r}; a diffusion model does not pool")
        config = self.config.replace(num_classes=num_classes)
        table: LabelEmbed | None = None
        if num_classes:
            like = self.patch_embed.proj.weight
            table = LabelEmbed(num_classes, config.dim, config.class_dropout).to(device=like.device, dtype=like.dtype)
            table.reset_parameters()
            table.train(self.training)
        self.config, self.label_embed = config, table

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample the positions to images of (h, w) = `img_size`, in pixels.

        Raises:
            ConfigError: a side is no multiple of the patch's.
        """
        config = self.config.replace(img_size=img_size)
        if self.has_position_table:
            position = resample_position(self.pos_embed.detach(), *config.grid_size)
            self.pos_embed = nn.Parameter(position.clone(), requires_grad=self.pos_embed.requires_grad)
        self.config = config

    def extra_repr(self) -> str:
        """The configuration, for `print(model)`."""
        return repr(self.config).partition("(")[2].removesuffix(")")


def _is_multiple(tensor: Tensor, rows: int) -> bool:
    return tensor.shape[0] >= rows and tensor.shape[0] % rows == 0


def _forget(index: int, hidden: Tensor) -> None:
    """Keep nothing."""
