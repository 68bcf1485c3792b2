"""Gated linear attention: what it is, and what it is not given."""

import pytest
import torch
from support import relative_error

from wavemamba import ShapeError
from wavemamba.errors import ConfigError
from wavemamba.ops import gla_scan, ssd_scan


def inputs(length=13, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": 5, "k": 5, "v": 3, "log_decay": 5}
    given = {name: torch.randn(2, length, 4, width, generator=generator, dtype=dtype) for name, width in shapes.items()}
    given["initial_state"] = torch.randn(2, 4, 5, 3, generator=generator, dtype=dtype)
    return given | {"log_decay": -given["log_decay"].abs()}


def test_it_is_attention_with_decays():
    """The parallel form of the paper, in float64 and for mild decays: quotients of the decays up to each step."""
    given = inputs()
    total = given["log_decay"].cumsum(1).exp()
    scores = torch.einsum("bihk,bjhk->bhij", given["q"] * total, given["k"] / total).tril()
    expected = torch.einsum("bhij,bjhv->bihv", scores, given["v"])
    expected += torch.einsum("bihk,bhkv->bihv", given["q"] * total, given["initial_state"])
    for backend in ("torch", "reference"):
        assert relative_error(gla_scan(**given, backend=backend), expected) < 1e-10


def test_one_decay_a_head_is_mamba_2():
    given = inputs()
    exponent = given["log_decay"][..., :1]
    y, last = gla_scan(**{**given, "log_decay": exponent.expand(-1, -1, -1, 5)}, return_last_state=True)
    ones = torch.ones_like(exponent[..., 0])
    for head in range(4):  # there the rate belongs to the head, so it is set by the step size, one head at a time
        own = slice(head, head + 1)
        size = -exponent[:, :, own, 0]
        again, state = ssd_scan(
            given["v"][:, :, own] / size[..., None], size, -ones[0, 0, own], given["k"][:, :, own],
            given["q"][:, :, own], initial_state=given["initial_state"][:, own].mT, return_last_state=True,
        )  # fmt: skip
        assert relative_error(y[:, :, own], again) < 1e-10
        assert relative_error(last[:, own], state.mT) < 1e-10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 13, 4)}, r"q: expected \(B, L, H, K\)"),
        ({"k": torch.zeros(2, 13, 4, 6)}, r"k: expected \(B, L, H, K\)"),
        ({"v": torch.zeros(2, 12, 4, 3)}, r"v: expected \(B, L, H, V\)"),
        ({"log_decay": torch.zeros(2, 13, 4, 1)}, r"log_decay: expected \(B, L, H, K\)"),
        ({"initial_state": torch.zeros(2, 4, 3, 5)}, r"initial_state: expected \(B, H, K, V\)"),
        ({"seq_idx": torch.zeros(2, 13)}, "seq_idx: expected a tensor"),
        ({"v": torch.zeros(2, 13, 4, 3, dtype=torch.int64)}, "v: expected float64, float32"),
        ({name: torch.zeros(2, 0, 4, 5) for name in ("q", "k", "v", "log_decay")}, "L, H, K and V at least 1"),
        ({"v": torch.zeros(2, 13, 4, 0)}, "L, H, K and V at least 1"),
    ],
)
def test_bad_inputs_are_named(change, message):
    with pytest.raises(ShapeError, match=message):
        gla_scan(**{**inputs(), **change})


@pytest.mark.parametrize("size", [0, 2.5, True])
def test_bad_chunks_are_named(size):
    with pytest.raises(ConfigError, match="chunk_size: expected"):
        gla_scan(**inputs(), chunk_size=size)
