"""`mamba_ssm.modules.mamba2`: the Mamba-2 mixer with mamba-ssm's parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavemamba.compat.causal_conv1d import causal_conv1d_varlen_states
from wavemamba.compat.mamba_ssm.modules.layers import (
    ONE_BY_ONE,
    CausalConv1d,
    check_tokens,
    keep_last_inputs,
    kept_states,
)
from wavemamba.compat.mamba_ssm.ops.triton.layernorm_gated import RMSNorm
from wavemamba.compat.mamba_ssm.ops.triton.selective_state_update import selective_state_update
from wavemamba.compat.mamba_ssm.ops.triton.ssd_combined import NO_LIMIT, mamba_chunk_scan_combined
from wavemamba.dtypes import accumulation_dtype
from wavemamba.errors import ConfigError
from wavemamba.layers.mixers.convolved import initial_step_sizes

__all__ = ["Mamba2"]


class Mamba2(nn.Module):
    """Mamba-2: (B, L, C) -> (B, L, C), with the parameters of `mamba_ssm.Mamba2`.

    Args:
        d_model: width C.
        d_state: state size N.
        d_conv: width of the convolution.
        conv_init: bound of a uniform start of its weight, or None.
        expand: inner width as a multiple of C.
        headdim: width P of a head.
        d_ssm: channels that are scanned, the others pass a gated MLP; None: all.
        ngroups: groups G of heads that share B and C.
        A_init_range: decay rates at the start.
        D_has_hdim: one skip factor a channel instead of one a head.
        rmsnorm: norm the gated result.
        norm_before_gate: norm first, then gate.
        dt_min: smallest step size at the start.
        dt_max: largest step size at the start.
        dt_init_floor: no step size starts below.
        dt_limit: range that step sizes are clamped to.
        bias: the projections have one.
        conv_bias: the convolution has one.
        chunk_size: steps that one matrix product takes.
        use_mem_eff_path: accepted; there is one path.
        layer_idx: the layer's number, for `inference_params`.
        process_group: only None; tensor parallelism is not offered.
        sequence_parallel: accepted.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigError: sizes do not divide each other, or there is a process group.

    Source: Dao and Gu, "Transformers are SSMs", 2024, section 7.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = NO_LIMIT,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: Any = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if process_group is not None:
            raise ConfigError("process_group: expected None; tensor parallelism is not offered, use FSDP2")
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = expand * d_model
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        if self.d_ssm % headdim or self.d_ssm % ngroups:
            raise ConfigError(
                f"headdim, ngroups: expected divisors of {self.d_ssm}, the channels scanned, got {headdim}, {ngroups}"
            )
        self.headdim, self.ngroups, self.nheads = headdim, ngroups, self.d_ssm // headdim
        self.D_has_hdim, self.rmsnorm, self.norm_before_gate = D_has_hdim, rmsnorm, norm_before_gate
        self.dt_limit, self.chunk_size, self.layer_idx = dt_limit, chunk_size, layer_idx
        self.activation, self.act, self.use_mem_eff_path = "silu", nn.SiLU(), use_mem_eff_path
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv_dim = self.d_ssm + 2 * ngroups * d_state
        columns = 2 * self.d_inner + 2 * ngroups * d_state + self.nheads  # MLP halves, z, x, B, C, dt
        self.in_proj = nn.Linear(d_model, columns, bias=bias, **options)
        self.conv1d = CausalConv1d(self.conv_dim, d_conv, conv_bias, **options)
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.dt_bias = nn.Parameter(initial_step_sizes(self.nheads, dt_min, dt_max, dt_init_floor, **options))
        rates = torch.empty(self.nheads, dtype=torch.float32, device=device).uniform_(*A_init_range)
        self.A_log = nn.Parameter(torch.log(rates).to(dtype=dtype))
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else self.nheads, device=device, dtype=torch.float32))
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]  # a mark that optimisers look for
        if rmsnorm:
            self.norm = RMSNorm(self.d_ssm, 1e-5, self.d_ssm // ngroups, norm_before_gate, **options)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **options)

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """Mix (B, L, C), or with `seqlen` (B * seqlen, C).

        Args:
            u: the tokens.
            seqlen: L, where batch and steps are one axis.
            seq_idx: (B, L), the sequence of each step.
            cu_seqlens: (S + 1,), where packed sequences begin, to keep the states of each in `inference_params`.
            inference_params: keeps the states; a later call continues from them.

        Raises:
            ShapeError: the shape is another, or the batch not the one that the states were made for.
            ConfigError: states are to be kept without `layer_idx`.
        """
        check_tokens(u, (None, self.d_model) if seqlen is not None else (None, None, self.d_model))
        x = u if seqlen is None else u.unflatten(0, (-1, seqlen))
        conv_state: Tensor | None = None
        ssm_state: Tensor | None = None
        if inference_params is not None:
            batch = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            conv_state, ssm_state = self._get_states_from_cache(inference_params, batch)
            if inference_params.seqlen_offset > 0:
                return self.step(u, conv_state, ssm_state)[0]
        gate0, x0, z, xBC, dt = self._split(self.in_proj(x))
        if conv_state is not None:
            if cu_seqlens is None:
                keep_last_inputs(conv_state, xBC.mT)
            else:
                with torch.no_grad():
                    conv_state.copy_(causal_conv1d_varlen_states(xBC.squeeze(0), cu_seqlens, self.d_conv))
        values, B, C = self._heads(self.conv1d(xBC.mT, activation="silu", seq_idx=seq_idx).mT)
        found = mamba_chunk_scan_combined(
            values,
            dt,
            -torch.exp(self.A_log.float()),
            B,
            C,
            self.chunk_size,
            self.D.unflatten(0, (-1, self.headdim)) if self.D_has_hdim else self.D,
            None if self.rmsnorm else z.unflatten(-1, (-1, self.headdim)),
            self.dt_bias,
            seq_idx=seq_idx,
            cu_seqlens=cu_seqlens,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            return_final_states=True,
            return_varlen_states=cu_seqlens is not None and ssm_state is not None,
        )
        if ssm_state is not None:
            with torch.no_grad():
                ssm_state.copy_(found[-1])
        out = self._project(found[0].flatten(2), z, gate0, x0)
        return out if seqlen is None else out.flatten(0, 1)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix the next token (B, 1, C); the states, of `allocate_inference_cache`, are updated in place.

        Raises:
            ShapeError: the shape is another.
        """
        check_tokens(hidden_states, (None, 1, self.d_model), ONE_BY_ONE)
        gate0, x0, z, xBC, dt = self._split(self.in_proj(hidden_states.squeeze(1)))
        values, B, C = self._heads(self.conv1d(xBC, activation="silu", conv_state=conv_state))
        heads, width, states = self.nheads, self.headdim, self.d_state
        skip = self.D.unflatten(0, (-1, width)) if self.D_has_hdim else self.D[:, None].expand(heads, width)
        wide = accumulation_dtype(dt.dtype)
        sizes = F.softplus(dt.to(wide) + self.dt_bias.to(wide)).clamp(*self.dt_limit)
        y = selective_state_update(
            ssm_state,
            values,
            sizes.unsqueeze(-1).expand(*sizes.shape, width),
            -torch.exp(self.A_log.float())[:, None, None].expand(heads, width, states),
            B,
            C,
            skip,
            z=None if self.rmsnorm else z.unflatten(-1, (-1, width)),
        )
        return self._project(y.flatten(1), z, gate0, x0).unsqueeze(1), conv_state, ssm_state

    def _split(self, columns: Tensor) -> tuple[Tensor, ...]:
        mlp = self.d_inner - self.d_ssm
        return columns.split([mlp, mlp, self.d_ssm, self.conv_dim, self.nheads], dim=-1)

    def _heads(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shared = self.ngroups * self.d_state
        x, B, C = xBC.split([self.d_ssm, shared, shared], dim=-1)
        return x.unflatten(-1, (-1, self.headdim)), *(t.unflatten(-1, (self.ngroups, -1)) for t in (B, C))

    def _project(self, y: Tensor, z: Tensor, gate0: Tensor, x0: Tensor) -> Tensor:
        if self.rmsnorm:
            y = self.norm(y, z)
        if x0.shape[-1] > 0:
            y = torch.cat([F.silu(gate0) * x0, y], dim=-1)
        out: Tensor = self.out_proj(y)
        return out

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Zero states: (B, channels of the convolution, d_conv) and (B, H, P, N)."""
        conv, scan = self.conv1d.weight, self.in_proj.weight
        return (
            conv.new_zeros(batch_size, self.conv_dim, self.d_conv, dtype=dtype or conv.dtype),
            scan.new_zeros(batch_size, self.nheads, self.headdim, self.d_state, dtype=dtype or scan.dtype),
        )

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        return kept_states(self, inference_params, batch_size, initialize_states)
