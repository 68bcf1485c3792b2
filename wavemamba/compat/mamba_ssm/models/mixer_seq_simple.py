"""`mamba_ssm.models.mixer_seq_simple`: language models of Mamba blocks."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wavemamba.compat.mamba_ssm.models.config_mamba import MambaConfig
from wavemamba.compat.mamba_ssm.modules.block import Block, add_and_norm
from wavemamba.compat.mamba_ssm.modules.mamba2 import Mamba2
from wavemamba.compat.mamba_ssm.modules.mamba_simple import Mamba
from wavemamba.compat.mamba_ssm.modules.mha import MHA
from wavemamba.compat.mamba_ssm.modules.mlp import GatedMLP
from wavemamba.compat.mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn
from wavemamba.compat.mamba_ssm.utils.generation import GenerationMixin
from wavemamba.compat.mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf
from wavemamba.files import write_atomically
from wavemamba.names import choose

__all__ = [
    "MambaLMHeadModel",
    "MixerModel",
    "RMSNorm",
    "create_block",
    "layer_norm_fn",
    "rms_norm_fn",
]

MIXERS: dict[str, Any] = {"Mamba1": Mamba, "Mamba2": Mamba2}


def create_block(
    d_model: int,
    d_intermediate: int = 0,
    ssm_cfg: dict[str, Any] | None = None,
    attn_layer_idx: list[int] | None = None,
    attn_cfg: dict[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: Any = None,
    dtype: Any = None,
) -> Block:
    """One block: a Mamba mixer, or attention where `layer_idx` is in `attn_layer_idx`.

    Args:
        d_model: width C.
        d_intermediate: hidden width of a gated MLP after the mixer; 0: none.
        ssm_cfg: options of the mixer; `layer` is "Mamba1" or "Mamba2".
        attn_layer_idx: layers that are attention.
        attn_cfg: options of the attention.
        norm_epsilon: of the norms.
        rms_norm: RMS norms instead of layer norms.
        residual_in_fp32: keep the residual in float32.
        fused_add_norm: sum and norm in float32.
        layer_idx: the layer's number.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigError: there is no such mixer.
    """
    options = {"device": device, "dtype": dtype}
    if layer_idx in (attn_layer_idx or []):
        mixer: Any = partial(MHA, layer_idx=layer_idx, **(attn_cfg or {}), **options)
    else:
        chosen = dict(ssm_cfg or {})
        kind = choose("ssm_cfg['layer']", chosen.pop("layer", "Mamba1"), MIXERS)
        mixer = partial(MIXERS[kind], layer_idx=layer_idx, **chosen, **options)
    norm: Any = partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **options)
    mlp: Any = nn.Identity
    if d_intermediate:
        mlp = partial(GatedMLP, hidden_features=d_intermediate, out_features=d_model, **options)
    block = Block(d_model, mixer, mlp, norm, fused_add_norm, residual_in_fp32)
    block.layer_idx = layer_idx  # type: ignore[assignment]  # as mamba-ssm marks its blocks
    return block


def _init_weights(
    module: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """For `nn.Module.apply`: zero biases, normal embeddings, outputs divided by the root of the number of residuals.

    Args:
        module: what is initialised.
        n_layer: layers of the model.
        initializer_range: standard deviation of embeddings.
        rescale_prenorm_residual: draw `out_proj.weight` and `fc2.weight` anew and divide them.
        n_residuals_per_layer: sums into the residual in a layer.
    """
    if isinstance(module, nn.Linear):
        if module.bias is not None and not getattr(module.bias, "_no_reinit", False):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    if not rescale_prenorm_residual:
        return
    for name, parameter in module.named_parameters():
        if name in ("out_proj.weight", "fc2.weight"):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
            with torch.no_grad():
                parameter.div_(math.sqrt(n_residuals_per_layer * n_layer))


class MixerModel(nn.Module):
    """Embedding, blocks, norm: token ids (B, L) -> (B, L, C). Arguments as in `create_block` and `MambaConfig`."""

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        d_intermediate: int = 0,
        vocab_size: int = 50277,
        ssm_cfg: dict[str, Any] | None = None,
        attn_layer_idx: list[int] | None = None,
        attn_cfg: dict[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: dict[str, Any] | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model, **options)
        self.layers = nn.ModuleList(
            create_block(
                d_model,
                d_intermediate,
                ssm_cfg,
                attn_layer_idx,
                attn_cfg,
                norm_epsilon,
                rms_norm,
                residual_in_fp32,
                fused_add_norm,
                layer,
                **options,
            )
            for layer in range(n_layer)
        )
        norm: Any = RMSNorm if rms_norm else nn.LayerNorm
        self.norm_f = norm(d_model, eps=norm_epsilon, **options)
        residuals = 1 if d_intermediate == 0 else 2
        self.apply(partial(_init_weights, n_layer=n_layer, **(initializer_cfg or {}), n_residuals_per_layer=residuals))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """The states of every layer."""
        layers: Any = self.layers
        return {
            i: layer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)
            for i, layer in enumerate(layers)
        }

    def forward(self, input_ids: Tensor, inference_params: Any = None, **mixer_kwargs: Any) -> Tensor:
        """Map token ids (B, L) to (B, L, C)."""
        hidden: Tensor = self.embedding(input_ids)
        residual: Tensor | None = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, inference_params=inference_params, **mixer_kwargs)
        return add_and_norm(self, self.norm_f, hidden, residual)[0]


class CausalLMOutput(NamedTuple):
    """What a language model returns."""

    logits: Tensor
    """(B, L, vocabulary)."""


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """A language model: token ids (B, L) -> `.logits` (B, L, vocabulary).

    Args:
        config: what it is made of.
        initializer_cfg: options of `_init_weights`.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self, config: MambaConfig, initializer_cfg: dict[str, Any] | None = None, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.config = config
        multiple = config.pad_vocab_size_multiple
        words = -(-config.vocab_size // multiple) * multiple
        self.backbone = MixerModel(
            config.d_model,
            config.n_layer,
            config.d_intermediate,
            words,
            config.ssm_cfg,
            config.attn_layer_idx,
            config.attn_cfg,
            rms_norm=config.rms_norm,
            initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm,
            residual_in_fp32=config.residual_in_fp32,
            device=device,
            dtype=dtype,
        )
        self.lm_head = nn.Linear(config.d_model, words, bias=False, device=device, dtype=dtype)
        self.apply(partial(_init_weights, n_layer=config.n_layer, **(initializer_cfg or {})))
        self.tie_weights()

    def tie_weights(self) -> None:
        """Use the embedding as the head's weight, where the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """The states of every layer."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
        **mixer_kwargs: Any,
    ) -> CausalLMOutput:
        """Predict the next tokens.

        Args:
            input_ids: (B, L).
            position_ids: accepted; a recurrence knows where it is.
            inference_params: keeps the states between calls.
            num_last_tokens: return the logits of so many last steps; 0: of all.
            **mixer_kwargs: passed to every mixer, for example `seq_idx`.
        """
        hidden = self.backbone(input_ids, inference_params=inference_params, **mixer_kwargs)
        if num_last_tokens > 0:
            hidden = hidden[:, -num_last_tokens:]
        return CausalLMOutput(self.lm_head(hidden))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name: str, device: Any = None, dtype: Any = None, **kwargs: Any
    ) -> MambaLMHeadModel:
        """Load `config.json` and `pytorch_model.bin` of a folder or a hub repository."""
        model = cls(MambaConfig(**load_config_hf(pretrained_model_name)), device=device, dtype=dtype, **kwargs)
        model.load_state_dict(load_state_dict_hf(pretrained_model_name, device=device, dtype=dtype))
        return model

    def save_pretrained(self, save_directory: str) -> None:
        """Write `pytorch_model.bin` and `config.json`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "pytorch_model.bin")
        write_atomically(folder / "config.json", json.dumps(dataclasses.asdict(self.config), indent=4).encode())
