"""The step that both branches of a DiMSUM block take: a modulated, gated, residual Mamba on a sequence."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wavemamba.errors import ConfigError
from wavemamba.layers import AdaLN, MambaMixer, SequenceMixer, gated_residual, make_norm, modulate
from wavemamba.layers.mixers import expect_mixer
from wavemamba.layers.norm import Norm
from wavemamba.layers.part_checks import expect_result


class GatedMamba(nn.Module):
    """`b + gate * Mamba(b * (1 + scale) + shift)` on a sequence, with shift, scale, gate = adaLN(cond).

    Without a condition: `b + Mamba(norm(b))`.

    Args:
        dim: width C.
        cond_dim: width of the condition, or None.
        mixer: a `Mixer`; None: `MambaMixer(dim)`.
        norm: see `make_norm`, for `cond_dim=None` alone; None: "rms".

    Raises:
        ConfigError: the mixer cannot be called as one or does not fit the block, or a norm is given with `cond_dim`.
    """

    def __init__(self, dim: int, cond_dim: int | None, mixer: nn.Module | None, norm: Norm | None = None) -> None:
        super().__init__()
        if cond_dim is not None and norm is not None:
            raise ConfigError(
                f"norm: expected None with cond_dim = {cond_dim}, got {norm!r}; the modulation replaces it"
            )
        self.mixer = MambaMixer(dim) if mixer is None else expect_mixer(mixer)
        if isinstance(mixer, SequenceMixer):
            _expect_fit(mixer, dim, cond_dim)
        # Decided here, while the mixer is what the caller built: what wraps it later may hide its attributes.
        self.conditions_mixer = bool(getattr(self.mixer, "takes_condition", True))
        self.norm = make_norm(norm or "rms", dim) if cond_dim is None else None
        self.modulation = None if cond_dim is None else AdaLN(dim, cond_dim)

    def forward(self, tokens: Tensor, cond: Tensor | None, order: Tensor | None) -> Tensor:
        """Take the step on (B, L, C), in the scan order `order`; returns (B, L, C)."""
        if self.modulation is None or cond is None:
            assert self.norm is not None
            return gated_residual(tokens, self._mix(self.norm(tokens), None, order), None)
        (step,) = self.modulation(cond)
        update = self._mix(modulate(tokens, step.shift, step.scale), cond, order)
        return gated_residual(tokens, update, step.gate)

    def _mix(self, tokens: Tensor, cond: Tensor | None, order: Tensor | None) -> Tensor:
        mixed = self.mixer(tokens, cond if self.conditions_mixer else None, order=order)
        return expect_result("mixer", mixed, tuple(tokens.shape), "(B, L, C)")

    def extra_repr(self) -> str:
        """Whether the condition also enters the mixer, for `print`."""
        return "" if self.modulation is None else f"conditions_mixer={self.conditions_mixer}"


def _expect_fit(mixer: SequenceMixer[Any], dim: int, cond_dim: int | None) -> None:
    if mixer.dim != dim:
        raise ConfigError(f"mixer: expected width {dim}, got {mixer.dim}; build it with {type(mixer).__name__}({dim})")
    if mixer.takes_condition and mixer.cond_dim != cond_dim:
        raise ConfigError(
            f"mixer: expected a mixer whose condition is that of the block, cond_dim = {cond_dim}, got cond_dim = "
            f"{mixer.cond_dim}; build both with the same cond_dim"
        )
