"""What a DiT is made of."""

from __future__ import annotations

from dataclasses import dataclass

from wavemamba.models.config import PatchConfig, expect, expect_whole

CLOCKS = ("diffusion", "flow")
VARIANCES = ("none", "dropped", "returned")


@dataclass(frozen=True, kw_only=True)
class DiTConfig(PatchConfig):
    """Options of a DiT or SiT; checks itself.

    Raises:
        ConfigError: a value is out of its range.
    """

    dim: int = 1152
    """Width C of a token, a multiple of 4 and of `num_heads`."""
    depth: int = 28
    """Transformer blocks."""
    num_heads: int = 16
    """Heads of the attention."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLPs as a multiple of C."""
    class_dropout: float = 0.1
    """Probability in [0, 1) that training replaces a label by the null class; 0: no null class."""
    clock: str = "diffusion"
    """What the network reads of the time t: "diffusion": the step 999 (1 - t), which is 999 at the noise; "flow": t."""
    variance: str = "returned"
    """A second half of the output's channels, a learnt variance: "returned", "dropped" or "none"."""
    learn_positions: bool = False
    """Train the positions, which start as sine and cosine."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        expect_whole(self, 1, "num_heads")
        fits = f"a divisor of dim = {self.dim}"
        expect("num_heads", self.num_heads, lambda v: self.dim % v == 0, fits)
        fits = f"a number that gives a hidden width >= 1 from dim = {self.dim}"
        expect("mlp_ratio", self.mlp_ratio, lambda v: 1 <= v * self.dim < float("inf"), fits)
        expect("clock", self.clock, lambda v: v in CLOCKS, f"one of {', '.join(CLOCKS)}")
        expect("variance", self.variance, lambda v: v in VARIANCES, f"one of {', '.join(VARIANCES)}")
        expect("learn_positions", self.learn_positions, lambda v: isinstance(v, bool), "True or False")

    @property
    def learns_positions(self) -> bool:
        """Whether the positions are trained."""
        return self.learn_positions

    @property
    def output_channels(self) -> int:
        """Channels of what the model returns: the prediction, and its variance where that is returned."""
        return self.predicted_channels * (2 if self.variance == "returned" else 1)

    @property
    def head_parts(self) -> int:
        """The prediction, and its variance where one is learnt."""
        return 1 if self.variance == "none" else 2
