"""Every op with every backend of its dispatch table, on a small example."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from support import scan_inputs
from torch import Tensor

from wavemamba import ops
from wavemamba.ops.causal_conv1d import BACKENDS as CONV_BACKENDS
from wavemamba.ops.dispatch.backend import Case
from wavemamba.ops.gla_scan import BACKENDS as GLA_BACKENDS
from wavemamba.ops.haar import BACKENDS as HAAR_BACKENDS
from wavemamba.ops.selective_scan import BACKENDS as SCAN_BACKENDS
from wavemamba.ops.ssd_scan import BACKENDS as SSD_BACKENDS


def _scan() -> dict[str, Tensor]:
    return {name: value.float() for name, value in scan_inputs(2, 5, 6, 3, groups=2).items()}


def _conv() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 5, 6), "weight": (6, 3), "bias": (6,), "initial_state": (2, 2, 6)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _ssd() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 5, 4, 3), "dt": (2, 5, 4), "A": (4,), "B": (2, 5, 2, 3), "C": (2, 5, 2, 3), "D": (4,)}
    shapes |= {"z": (2, 5, 4, 3), "dt_bias": (4,), "initial_state": (2, 4, 3, 3)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return inputs | {"A": -inputs["A"].abs()}


def _gla() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (2, 5, 2, 3), "k": (2, 5, 2, 3), "v": (2, 5, 2, 4), "log_decay": (2, 5, 2, 3)}
    shapes |= {"initial_state": (2, 2, 3, 4)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return inputs | {"log_decay": -inputs["log_decay"].abs()}


def _image() -> dict[str, Tensor]:
    return {"x": torch.randn(2, 4, 8, 5, generator=torch.Generator().manual_seed(0))}


EXAMPLES = {
    "selective_scan": (ops.selective_scan, _scan, {"delta_softplus": True, "return_last_state": True}, SCAN_BACKENDS),
    "causal_conv1d": (ops.causal_conv1d, _conv, {"activation": "silu"}, CONV_BACKENDS),
    "ssd_scan": (ops.ssd_scan, _ssd, {"dt_softplus": True, "return_last_state": True}, SSD_BACKENDS),
    "gla_scan": (ops.gla_scan, _gla, {"return_last_state": True}, GLA_BACKENDS),
    "to_haar_map": (ops.to_haar_map, _image, {"levels": 2, "layout": "channel"}, HAAR_BACKENDS),
    "from_haar_map": (ops.from_haar_map, _image, {"levels": 2, "layout": "mosaic"}, HAAR_BACKENDS),
}


@dataclass(frozen=True)
class Call:
    """One op, one backend, and a small example of float32 inputs."""

    op: str
    backend: str

    def __str__(self) -> str:
        return f"{self.op}-{self.backend}"

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The example's tensors by name, all that the op can take, fresh ones each time."""
        return EXAMPLES[self.op][1]()

    def on(self, backend: str) -> Call:
        """The same call of another backend."""
        return replace(self, backend=backend)

    def __call__(self, inputs: dict[str, Tensor] | None = None, **changes: Any) -> tuple[Tensor, ...]:
        """The outputs; `changes` replace inputs or options."""
        function, _, options, _ = EXAMPLES[self.op]
        given = self.inputs if inputs is None else inputs
        result = function(**{**given, **options, **changes}, backend=self.backend)
        return result if isinstance(result, tuple) else (result,)

    def with_gradients(self, inputs: dict[str, Tensor] | None = None, **changes: Any) -> dict[str, Tensor | None]:
        """Outputs by number, and the gradient of a fixed weighted sum of them by the input's name."""
        given = self.inputs if inputs is None else inputs
        leaves = {name: value.detach().requires_grad_() for name, value in given.items()}
        outputs = self(leaves, **changes)
        generator = torch.Generator().manual_seed(1)
        flowing = [torch.randn(y.shape, generator=generator, dtype=torch.float64, device="cpu").to(y) for y in outputs]
        gradients = torch.autograd.grad(outputs, list(leaves.values()), flowing, allow_unused=True)
        return dict(enumerate(outputs)) | dict(zip(leaves, gradients, strict=True))


def calls_of(*names: str) -> list[Call]:
    """Every op of these names with every backend that can run here; why others cannot, `ops.backends()` says."""
    return [
        Call(op, backend.name)
        for op in names
        for backend in EXAMPLES[op][-1]
        if backend.refuses(Case(op, "cpu", torch.float32)) is None
    ]
