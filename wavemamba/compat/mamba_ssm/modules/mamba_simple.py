"""`mamba_ssm.modules.mamba_simple`: Mamba-1 with mamba-ssm's parameters, and Vision Mamba's directions."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wavemamba.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from wavemamba.compat.mamba_ssm.modules.block import LegacyBlock as Block
from wavemamba.compat.mamba_ssm.modules.layers import (
    ONE_BY_ONE,
    CausalConv1d,
    StepSize,
    check_tokens,
    keep_last_inputs,
    kept_states,
)
from wavemamba.compat.mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn
from wavemamba.compat.mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn
from wavemamba.compat.mamba_ssm.ops.triton.selective_state_update import selective_state_update
from wavemamba.errors import ConfigError
from wavemamba.layers.mixers.convolved import initial_step_sizes
from wavemamba.ops import selective_scan

__all__ = [
    "Block",
    "Mamba",
    "RMSNorm",
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "layer_norm_fn",
    "mamba_inner_fn",
    "rms_norm_fn",
    "selective_scan_fn",
    "selective_state_update",
]


class Mamba(nn.Module):
    """Mamba-1: (B, L, C) -> (B, L, C), with the parameters of `mamba_ssm.Mamba`; see `wavemamba.MambaMixer`.

    Args:
        d_model: width C.
        d_state: state size N of a channel.
        d_conv: width of the convolution.
        expand: inner width D as a multiple of C.
        dt_rank: rank of the step size; "auto": C / 16, rounded up.
        dt_min: smallest step size at the start.
        dt_max: largest step size at the start.
        dt_init: "random" or "constant", of `dt_proj.weight`.
        dt_scale: factor of its size.
        dt_init_floor: no step size starts below.
        conv_bias: the convolution has a bias.
        bias: the projections have one.
        use_fast_path: accepted; there is one path.
        layer_idx: the layer's number, for `inference_params`.
        device: of the parameters.
        dtype: of the parameters; `A_log` and `D` are float32.
        bimamba_type: "none"; "v1": a second scan backwards with its own `A`; "v2": with its own parameters throughout.
        if_divide_out: halve the sum of both directions.
        init_layer_scale: start value of a factor `gamma` of the output, or None.

    Raises:
        ConfigError: an option is unknown.

    Source: Gu and Dao, "Mamba", 2023; two directions: Zhu et al., "Vision Mamba", 2024.
    """

    conv1d: CausalConv1d
    x_proj: nn.Linear
    dt_proj: StepSize
    A_log: nn.Parameter
    A_b_log: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bimamba_type: str | None = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        if bimamba_type not in (None, "none", "v1", "v2"):
            raise ConfigError(f"bimamba_type: expected 'none', 'v1' or 'v2', got {bimamba_type!r}")
        if dt_init not in ("random", "constant"):
            raise ConfigError(f"dt_init: expected 'random' or 'constant', got {dt_init!r}")
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.bimamba_type, self.if_divide_out, self.init_layer_scale = (
            bimamba_type or "none",
            if_divide_out,
            init_layer_scale,
        )
        self.activation = "silu"
        self.act = nn.SiLU()
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model, device=device))
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **options)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **options)
        for end in ("", "_b") if self.bimamba_type == "v2" else ("",):
            setattr(self, f"conv1d{end}", CausalConv1d(self.d_inner, d_conv, conv_bias, **options))
            setattr(self, f"x_proj{end}", nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **options))
            dt_proj = StepSize(self.dt_rank, self.d_inner, **options)
            size = self.dt_rank**-0.5 * dt_scale
            nn.init.constant_(dt_proj.weight, size) if dt_init == "constant" else nn.init.uniform_(
                dt_proj.weight, -size, size
            )
            with torch.no_grad():
                dt_proj.bias.copy_(initial_step_sizes(self.d_inner, dt_min, dt_max, dt_init_floor, **options))
            dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]  # a mark that initialisers look for
            setattr(self, f"dt_proj{end}", dt_proj)
            self._keep(f"D{end}", torch.ones(self.d_inner, device=device, dtype=torch.float32))
        rates = torch.log(torch.arange(1, d_state + 1, device=device, dtype=torch.float32)).repeat(self.d_inner, 1)
        self._keep("A_log", rates)
        if self.bimamba_type != "none":
            self._keep("A_b_log", rates.clone())

    def _keep(self, name: str, value: Tensor) -> None:
        parameter = nn.Parameter(value)
        parameter._no_weight_decay = True  # type: ignore[attr-defined]  # a mark that optimisers look for
        setattr(self, name, parameter)

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """Mix (B, L, C); with `inference_params` the states are kept, and a later call continues from them.

        Raises:
            ShapeError: the shape is another, or the batch not the one that the states were made for.
            ConfigError: the mixer has two directions and is to continue, or states are to be kept without `layer_idx`.
        """
        check_tokens(hidden_states, (None, None, self.d_model))
        conv_state: Tensor | None = None
        ssm_state: Tensor | None = None
        if inference_params is not None:
            conv_state, ssm_state = self._get_states_from_cache(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, conv_state, ssm_state)[0]
        x, z = self.in_proj(hidden_states).chunk(2, dim=-1)
        if conv_state is not None:
            keep_last_inputs(conv_state, x.mT)
        y, last = self._scan(x, z, "", self.A_log, None)
        if ssm_state is not None:
            with torch.no_grad():
                ssm_state.copy_(last)
        if self.bimamba_type != "none":
            backwards = torch.arange(x.shape[1] - 1, -1, -1, device=x.device)
            if self.bimamba_type == "v1":  # both directions read the same convolution and projections
                y = self._scan(x, z, "", self.A_log, None, also=(self.A_b_log, backwards))[0]
            else:
                y = y + self._scan(x, z, "_b", self.A_b_log, backwards)[0]
            y = y / 2 if self.if_divide_out and self.bimamba_type == "v2" else y
        out: Tensor = self.out_proj(y)
        return out if self.init_layer_scale is None else out * self.gamma

    def _scan(
        self,
        x: Tensor,
        z: Tensor,
        end: str,
        A_log: Tensor,
        order: Tensor | None,
        also: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One direction, or with `also` a second scan of the same projections: (B, L, D) and the first's last state."""
        u = getattr(self, f"conv1d{end}")(x.mT, activation="silu", order=order).mT
        dt, B, C = getattr(self, f"x_proj{end}")(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = getattr(self, f"dt_proj{end}")(dt)
        D = getattr(self, f"D{end}").float()
        y, last = selective_scan(
            u, delta, -torch.exp(A_log.float()), B, C, D, z, delta_softplus=True, return_last_state=True, order=order
        )
        if also is not None:
            A = -torch.exp(also[0].float())
            y = y + selective_scan(u, delta, A, B, C, D, z, delta_softplus=True, order=also[1])
        return y, last

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix the next token (B, 1, C); the states, of `allocate_inference_cache`, are updated in place.

        Raises:
            ShapeError: the shape is another.
            ConfigError: the mixer has two directions.
        """
        check_tokens(hidden_states, (None, 1, self.d_model), ONE_BY_ONE)
        if self.bimamba_type != "none":
            raise ConfigError("step: expected one direction, got two; a backward scan needs the whole sequence")
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)
        x = self.conv1d(x, activation="silu", conv_state=conv_state)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        A = -torch.exp(self.A_log.float())
        y = selective_state_update(ssm_state, x, self.dt_proj(dt), A, B, C, self.D, z=z, dt_softplus=True)
        return self.out_proj(y).unsqueeze(1), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Zero states: (B, D, d_conv) and (B, D, N); their size does not depend on `max_seqlen`."""
        conv, scan = self.conv1d.weight, self.dt_proj.weight
        return (
            conv.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype or conv.dtype),
            scan.new_zeros(batch_size, self.d_inner, self.d_state, dtype=dtype or scan.dtype),
        )

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        return kept_states(self, inference_params, batch_size, initialize_states)
