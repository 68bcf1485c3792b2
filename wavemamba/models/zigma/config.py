"""What a ZigMa is made of."""

from __future__ import annotations

from dataclasses import dataclass

from wavemamba.models.config import PatchConfig, expect, expect_whole, whole
from wavemamba.scans import scan_order

POSITIONS = ("learnt", "sincos", "none")


@dataclass(frozen=True, kw_only=True)
class ZigMaConfig(PatchConfig):
    """Options of a ZigMa; checks itself.

    Raises:
        ConfigError: a value is out of its range.
    """

    dim: int = 768
    """Width C of a token, a multiple of 4."""
    depth: int = 24
    """Blocks."""
    class_dropout: float = 0.0
    """Probability in [0, 1) that training replaces a label by the null class; 0: no null class."""
    context_dim: int | None = None
    """Width d of text tokens (B, T, d) that the blocks attend to in place of a class; None: no text."""
    context_heads: int = 8
    """Heads of that attention."""
    context_head_dim: int = 64
    """Width of such a head."""
    drop_path_rate: float = 0.1
    """Probability in [0, 1) of dropping a block's output, rising linearly over the depth up to this value."""
    scan: str = "zigma"
    """A path family, block i along path i % 8: an order with the option `path`, "zigma", "sweep", "jpeg" or a
    registered one; "hilbert", as it is, transposed, backwards and both in turn; or any other order by name, the same
    in every block."""
    bidirectional: bool = False
    """Mixers scan backwards too."""
    positions: str = "learnt"
    """"learnt", from zero; "sincos": fixed sines and cosines; or "none"."""
    d_state: int = 16
    """State size N of the mixers."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        expect_whole(self, 1, "d_state", "context_heads", "context_head_dim")
        expect("context_dim", self.context_dim, lambda v: v is None or whole(v, 1), "None or an int >= 1")
        expect("drop_path_rate", self.drop_path_rate, lambda v: 0 <= v < 1, "a probability in [0, 1)")
        expect("positions", self.positions, lambda v: v in POSITIONS, f"one of {', '.join(POSITIONS)}")
        expect("bidirectional", self.bidirectional, lambda v: isinstance(v, bool), "True or False")
        if self.context_dim is not None:
            expect("num_classes", self.num_classes, lambda v: v == 0, "0 with context_dim, as text takes their place")
        order = scan_order(self.scan)
        if "(" not in self.scan:  # a name alone, in whatever case, may stand for a family of paths
            object.__setattr__(self, "scan", order.name)

    @property
    def learns_positions(self) -> bool:
        """Whether the positions are trained."""
        return self.positions == "learnt"
