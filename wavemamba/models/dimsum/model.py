"""The DiMSUM diffusion model, built from the public blocks."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wavemamba.blocks import DiMSUMBlock, SharedAttention, SpatialFrequencyFusion, SpatialMambaBlock, WaveletMambaBlock
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.layers import AdaLN, LabelEmbed, MambaMixer, PatchEmbed, TimeEmbed, make_mlp, make_norm, modulate
from wavemamba.layers.embeddings import resample_position, sincos_position, unpatchify
from wavemamba.layers.norm import plain_layer_norm
from wavemamba.models.checks import check_inputs
from wavemamba.models.dimsum.config import BlockSpec, DiMSUMConfig, layer_plan
from wavemamba.models.saving import SavedModel


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


class DiMSUM(SavedModel):
    """Diffusion Mamba over space and frequency.

    Args:
        config: what the model is made of.

    Source: Phung et al., "DiMSUM: Diffusion Mamba", NeurIPS 2024, arXiv 2411.04168.
    """

    config: DiMSUMConfig
    config_class = DiMSUMConfig
    time_range = (0.0, 1.0)
    """The times that the model accepts; solvers read it."""

    def __init__(self, config: DiMSUMConfig) -> None:
        super().__init__()
        self.config = config
        self.default_cfg: dict[str, Any] = {}
        self.grad_checkpointing = False
        dim = config.dim
        self.out_chans = config.in_chans if config.out_chans is None else config.out_chans
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, *config.grid_size, dim))
        self.time_embed = TimeEmbed(dim)
        self.label_embed = LabelEmbed(config.num_classes, dim, config.class_dropout) if config.num_classes else None
        self.plan = layer_plan(config)
        self.blocks = nn.ModuleList(_make_block(config, spec) for spec in self.plan)
        self.attentions = nn.ModuleList(
            SharedAttention(dim, config.attention_heads, dim, mlp_ratio=config.mlp_ratio, gated_mlp=config.gated_mlp)
            for _ in {spec.attention for spec in self.plan if spec.attention is not None}
        )
        self.final_norm = make_norm(config.norm, dim) if config.final_norm else None
        self.head = OutputLayer(dim, config.patch_size**2 * self.out_chans)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the released model: see the docstrings of the parts.

        Biases of Linear layers are zero; the mixers' output projections are divided by the square root of the depth;
        the blocks' own modulation and the output layer are zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, MambaMixer):
                nn.init.kaiming_uniform_(module.out_proj.weight, a=5**0.5)
                with torch.no_grad():
                    module.out_proj.weight.div_(self.config.depth**0.5)
        self.patch_embed.reset_parameters()
        with torch.no_grad():
            self.pos_embed.copy_(sincos_position(*self.config.grid_size, self.config.dim))
        self.time_embed.reset_parameters()
        if self.label_embed is not None:
            self.label_embed.reset_parameters()
        for block in self.blocks:
            assert isinstance(block.modulation, AdaLN)
            block.modulation.zero_()
        self.head.zero_()

    @property
    def num_classes(self) -> int:
        """Classes, without the null class; 0: unconditional."""
        return self.config.num_classes

    @property
    def null_class(self) -> int | None:
        """The id of the null class that guidance uses, or None where the model has none."""
        return None if self.label_embed is None else self.label_embed.null_class

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict, for velocity matching, the velocity at time `t`.

        Args:
            x: (B, in_chans, h, w), sides multiples of the patch size.
            t: (B,), times in [0, 1]: 0 noise, 1 data.
            y: (B,) int64 class ids, up to and including the null class; None: the table's last row (the null class
                where there is one), or an unconditional model.

        Returns:
            (B, out_chans, h, w).

        Raises:
            ShapeError: a size does not fit; on the CPU also a time or a class id out of range.
        """
        tokens, cond = self._run_blocks(x, t, y)
        return self.forward_head(tokens, cond)

    def forward_features(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The tokens that the output layer reads, (B, H, W, C); the same arguments as `forward`."""
        return self._run_blocks(x, t, y)[0]

    def forward_head(self, tokens: Tensor, cond: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) and the condition (B, C) to the output (B, out_chans, h, w)."""
        return unpatchify(self.head(tokens, cond), self.config.patch_size)

    def embed_condition(self, t: Tensor, y: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        """The condition (B, C): the time's embedding, its features read in `dtype` (None: of `t`), plus the label's."""
        cond: Tensor = self.time_embed(t, dtype)
        if self.label_embed is not None:
            cond = cond + self.label_embed(y, t)
        return cond

    def _run_blocks(self, x: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        check_inputs(self.config, x, t, y)
        cond = self.embed_condition(t, y, x.dtype)
        tokens = self.patch_embed(x)
        hidden: Tensor = tokens + resample_position(self.pos_embed, tokens.shape[1], tokens.shape[2])
        residual: Tensor | None = None
        for block, spec in zip(self.blocks, self.plan, strict=True):
            hidden, residual = self._call(block, hidden, cond, residual)
            if spec.attention is not None:
                hidden = self._call(self.attentions[spec.attention], hidden, cond)
        if self.final_norm is not None:
            assert residual is not None
            hidden = self.final_norm(residual + hidden.to(accumulation_dtype(hidden.dtype)), hidden.dtype)
        return hidden, cond

    def _call(self, module: nn.Module, *args: Tensor | None) -> Any:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False)
        return module(*args)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay would harm: `A_log`, `D`, and the embedding tables."""
        names = {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in ("A_log", "D")}
        return names | {"pos_embed"} | ({"label_embed.table.weight"} if self.label_embed is not None else set())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort the parameters into layers, in timm's form.

        A transformer block comes where it runs first.

        Args:
            coarse: accepted for timm's sake; a block is one layer either way.
        """
        first_place: dict[int, int] = {}
        for block, spec in enumerate(self.plan):
            if spec.attention is not None:
                first_place.setdefault(spec.attention, block)
        blocks: list[tuple[str, tuple[float, ...] | None]] = [(r"^blocks\.(\d+)", None)]
        blocks += [(rf"^attentions\.{i}\.", (block + 0.5,)) for i, block in first_place.items()]
        blocks.append((r"^final_norm|^head", (99999,)))
        return {"stem": r"^pos_embed|^patch_embed|^time_embed|^label_embed", "blocks": blocks}

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
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        if num_classes == 0:
            self.label_embed = None
            return
        self.label_embed = LabelEmbed(num_classes, self.config.dim, self.config.class_dropout).to(
            device=self.pos_embed.device, dtype=self.pos_embed.dtype
        )
        self.label_embed.reset_parameters()
        self.label_embed.train(self.training)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample the positions to images of (h, w) = `img_size`, in pixels.

        Raises:
            ConfigError: a side is no multiple of the patch size.
        """
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        config = dataclasses.replace(self.config, img_size=size)
        position = resample_position(self.pos_embed.detach(), *config.grid_size)
        self.pos_embed = nn.Parameter(position.clone(), requires_grad=self.pos_embed.requires_grad)
        self.config = config

    def extra_repr(self) -> str:
        """The configuration, for `print(model)`."""
        return re.sub(r"^DiMSUMConfig\((.*)\)$", r"\1", repr(self.config))


def _make_block(config: DiMSUMConfig, spec: BlockSpec) -> DiMSUMBlock:
    half, dim = config.dim // 2, config.dim

    def mixer() -> MambaMixer:
        return MambaMixer(
            half,
            d_state=config.d_state,
            bidirectional=config.bidirectional,
            cond_dim=dim,
            conditioning=config.conditioning,
        )

    return DiMSUMBlock(
        dim,
        dim,
        spatial=SpatialMambaBlock(half, dim, scan=spec.spatial_scan, mixer=mixer()),
        frequency=WaveletMambaBlock(
            half,
            dim,
            transform=config.transform,
            levels=config.levels,
            layout=config.layout,
            scan=spec.frequency_scan,
            mixer=mixer(),
        ),
        fusion=SpatialFrequencyFusion(dim, config.fusion_heads, mode=config.fusion),
        mlp=make_mlp(dim, config.mlp_ratio, gated=config.gated_mlp),
        norm=config.norm,
        drop_path=spec.drop_path,
    )
