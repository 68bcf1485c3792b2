"""The scan of Mamba-2: chunked matrix products against the plain loop."""

import pytest
import torch
from support import relative_error

from wavemamba import ShapeError
from wavemamba.errors import ConfigError
from wavemamba.ops import selective_scan, ssd_scan

TENSORS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")


def inputs(length=13, groups=1, wide_skip=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": normal(2, length, 4, 3), "dt": normal(2, length, 4), "A": -normal(4).abs() - 0.1,
        "B": normal(2, length, groups, 5), "C": normal(2, length, groups, 5),
        "D": normal(4, 3) if wide_skip else normal(4), "z": normal(2, length, 4, 3), "dt_bias": normal(4),
        "initial_state": normal(2, 4, 3, 5), "dt_softplus": True,
    }  # fmt: skip


def packed(length):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 4, (2, length), generator=generator).sort(dim=1).values


@pytest.mark.parametrize("with_sequences", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (2, 1), (13, 4), (13, 64), (16, 4), (63, 8)])
def test_outputs_and_every_gradient(length, chunk, groups, with_sequences):
    given = inputs(length, groups, wide_skip=groups == 2)
    for name in TENSORS:
        given[name].requires_grad_()
    ids = packed(length) if with_sequences else None
    found = []
    for backend in ("reference", "torch"):
        options = {"seq_idx": ids, "chunk_size": chunk, "return_last_state": True, "backend": backend}
        y, last = ssd_scan(**given, **options)
        weighted = (y * torch.ones_like(y).cumsum(1)).sum() + (last * torch.ones_like(last).cumsum(-1)).sum()
        found.append((y, last, *torch.autograd.grad(weighted, [given[name] for name in TENSORS])))
    for plain, chunked in zip(*found, strict=True):
        assert relative_error(chunked, plain) < 1e-10


def test_one_state_a_head_is_mamba_1():
    given = inputs()
    y, last = ssd_scan(**given, return_last_state=True)
    u, z = given["x"].flatten(2), given["z"].flatten(2)
    channels = {name: given[name].repeat_interleave(3, dim=-1) for name in ("dt", "D", "dt_bias")}
    A = given["A"].repeat_interleave(3)[:, None].expand(12, 5)
    again, state = selective_scan(
        u, channels["dt"], A, given["B"], given["C"], channels["D"], z, delta_bias=channels["dt_bias"],
        delta_softplus=True, initial_state=given["initial_state"].flatten(1, 2), return_last_state=True,
    )  # fmt: skip
    assert relative_error(y.flatten(2), again) < 1e-10
    assert relative_error(last.flatten(1, 2), state) < 1e-6  # states are float32 there


def test_packed_sequences_are_scanned_alone():
    given = {name: t[:1] if isinstance(t, torch.Tensor) and t.dim() > 2 else t for name, t in inputs().items()}
    ids = torch.tensor([[7] * 5 + [9] * 8])
    y = ssd_scan(**given, seq_idx=ids, chunk_size=4)
    part = {name: t[:, 5:] if isinstance(t, torch.Tensor) and t.dim() > 2 else t for name, t in given.items()}
    alone = ssd_scan(**{**part, "initial_state": None})
    assert relative_error(y[:, 5:], alone) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_float32(dtype):
    given = inputs(dtype=dtype)
    y, last = ssd_scan(**given, return_last_state=True)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    wide = {name: t.double() if isinstance(t, torch.Tensor) else t for name, t in given.items()}
    assert relative_error(y, ssd_scan(**wide, backend="reference")) < (1e-6 if dtype == torch.float32 else 1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, state = ssd_scan(**given, return_last_state=True)
    assert torch.equal(again, y)
    assert torch.equal(state, last)


def test_step_sizes_are_clamped():
    given = {**inputs(), "dt_limit": (0.1, 0.5)}
    sizes = torch.nn.functional.softplus(given["dt"] + given["dt_bias"]).clamp(0.1, 0.5)
    plain = {**given, "dt": sizes, "dt_bias": None, "dt_softplus": False}
    assert relative_error(ssd_scan(**given), ssd_scan(**plain)) < 1e-12


def test_no_overflow_where_decays_are_long():
    given = {**inputs(64, dtype=torch.float32), "dt": torch.full((2, 64, 4), 50.0)}
    assert ssd_scan(**given).isfinite().all()


def test_one_graph():
    given = inputs(dtype=torch.float32)
    compiled = torch.compile(lambda **arguments: ssd_scan(**arguments), fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(**given), ssd_scan(**given)) < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": torch.zeros(2, 13, 3)}, r"dt: expected \(B, L, H\)"),
        ({"B": torch.zeros(2, 13, 3, 5), "C": torch.zeros(2, 13, 3, 5)}, "groups G that divide H = 4"),
        ({"C": torch.zeros(2, 13, 1, 4)}, r"C: expected \(B, L, G, N\)"),
        ({"seq_idx": torch.zeros(2, 12)}, "seq_idx"),
        ({"seq_idx": torch.zeros(2, 13)}, "seq_idx: expected a tensor"),
        ({"A": torch.zeros(4, dtype=torch.complex64)}, "A: expected float64, float32"),
    ],
)
def test_bad_inputs_are_named(change, message):
    with pytest.raises(ShapeError, match=message):
        ssd_scan(**{**inputs(), **change})


@pytest.mark.parametrize("change", [{"chunk_size": 0}, {"chunk_size": 2.5}, {"dt_limit": (2.0, 1.0)}])
def test_bad_options_are_named(change):
    with pytest.raises(ConfigError, match="expected"):
        ssd_scan(**{**inputs(), **change})


def test_an_empty_batch_gives_an_empty_result():
    given = {name: t[:0] if isinstance(t, torch.Tensor) and t.dim() > 2 else t for name, t in inputs().items()}
    y, last = ssd_scan(**given, return_last_state=True)
    assert (y.shape, last.shape) == ((0, 13, 4, 3), (0, 4, 3, 5))
