"""`causal_conv1d_cuda`, causal-conv1d's compiled module: its calls differ from release to release, none is offered."""

from __future__ import annotations

from typing import Any

from wavemamba.compat import raw


def __getattr__(name: str) -> Any:
    raw.refuse("causal_conv1d_cuda", name)
