"""The backends that call the chunked kernels of mamba-ssm and flash-linear-attention: layouts, dtypes, limits.

The stand-ins have the signatures of those packages, insist on what their kernels insist on, and compute by the
definition. tests/cuda runs the packages themselves where they are installed.
"""

import math
import sys
import types

import pytest
import torch
from support import relative_error

from wavemamba.errors import BackendUnavailable
from wavemamba.ops import backends, gla_scan, ssd_scan
from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Backend, Case, resolve
from wavemamba.ops.gla_scan import fla as gla_backend
from wavemamba.ops.ssd_scan import fla as fla_backend
from wavemamba.ops.ssd_scan import mamba_ssm as mamba_backend


def mamba_chunk_scan_combined(
    x,
    dt,
    A,
    B,
    C,
    chunk_size,
    D=None,
    z=None,
    dt_bias=None,
    initial_states=None,
    seq_idx=None,
    cu_seqlens=None,
    dt_softplus=False,
    dt_limit=(0.0, math.inf),
    return_final_states=False,
    return_varlen_states=False,
):
    assert all(t.dtype == x.dtype for t in (B, C, z) if t is not None)
    assert all(t.dtype == torch.float32 for t in (dt, A, D, initial_states) if t is not None)
    assert 16 <= chunk_size <= 256
    assert chunk_size & (chunk_size - 1) == 0
    if seq_idx is not None:  # the kernel drops the initial state unless it enters number 0
        assert seq_idx.dtype == torch.int32
        assert not seq_idx[:, 0].any()
    y, last = ssd_scan(
        x, dt, A, B, C, D, z, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit, seq_idx=seq_idx,
        initial_state=initial_states, return_last_state=True, backend="reference",
    )  # fmt: skip
    return (y, last) if return_final_states else y


def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    assert q.dtype == k.dtype == v.dtype
    assert g.dtype == torch.float32
    assert initial_state is None or initial_state.dtype == torch.float32
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    y, last = gla_scan(q * scale, k, v, g, initial_state=initial_state, return_last_state=True, backend="reference")
    return y, last if output_final_state else None


def chunk_simple_gla(
    q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None
):
    assert initial_state is None or initial_state.is_contiguous()
    return chunk_gla(q, k, v, g[..., None].expand(k.shape), scale, initial_state, output_final_state)


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    combined = types.ModuleType("mamba_ssm.ops.triton.ssd_combined")
    combined.mamba_chunk_scan_combined = mamba_chunk_scan_combined
    gla, simple = types.ModuleType("fla.ops.gla"), types.ModuleType("fla.ops.simple_gla")
    gla.chunk_gla, simple.chunk_simple_gla = chunk_gla, chunk_simple_gla
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for module in (combined, gla, simple):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def ssd_inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 9, 4, 3), "dt": (2, 9, 4), "A": (4,), "B": (2, 9, 2, 5), "C": (2, 9, 2, 5), "D": (4,)}
    shapes |= {"z": (2, 9, 4, 3), "initial_state": (2, 4, 3, 5)}
    given = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return given | {"dt": given["dt"].abs(), "A": -given["A"].abs()}


def gla_inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (2, 9, 2, 3), "k": (2, 9, 2, 3), "v": (2, 9, 2, 4), "log_decay": (2, 9, 2, 3)}
    shapes |= {"initial_state": (2, 2, 3, 4)}
    given = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return given | {"log_decay": -given["log_decay"].abs()}


def differentiated(run, inputs):
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    outputs = run(leaves)
    generator = torch.Generator().manual_seed(1)
    flowing = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in outputs]
    return [*outputs, *torch.autograd.grad(outputs, list(leaves.values()), flowing)]


def expect_the_definition(run, op, inputs, **options):
    found = differentiated(run, inputs)
    exact = {name: value.double() for name, value in inputs.items()}
    expected = differentiated(
        lambda leaves: op(**leaves, **options, return_last_state=True, backend="reference"), exact
    )
    for result, truth in zip(found, expected, strict=True):
        assert relative_error(result, truth) < 1e-5


@pytest.mark.parametrize("without", [(), ("D", "z", "initial_state")])
@pytest.mark.parametrize("module", [mamba_backend, fla_backend])
def test_ssd_and_its_gradients(module, without):
    inputs = {name: value for name, value in ssd_inputs().items() if name not in without}

    def run(given):
        rest = (given.get(name) for name in ("D", "z", "initial_state"))
        return module.run(*(given[name] for name in ("x", "dt", "A", "B", "C")), *rest, None, 64, True)

    expect_the_definition(run, ssd_scan, inputs)


@pytest.mark.parametrize("chunk_size", [1, 50, 1000])
def test_packed_sequences_in_mamba_ssm(chunk_size):
    ids = torch.tensor([[5, 5, 5, 2, 2, 5, 5, 5, 5], [0, 1, 1, 1, 1, 1, 1, 7, 7]])

    def run(given):
        rest = (given[name] for name in ("D", "z", "initial_state"))
        return mamba_backend.run(*(given[n] for n in ("x", "dt", "A", "B", "C")), *rest, ids, chunk_size, True)

    expect_the_definition(run, ssd_scan, ssd_inputs(), seq_idx=ids)


@pytest.mark.parametrize("with_state", [False, True])
def test_gla_and_its_gradients(with_state):
    inputs = {name: value for name, value in gla_inputs().items() if with_state or name != "initial_state"}

    def run(given):
        rows = (given[name] for name in ("q", "k", "v", "log_decay"))
        return gla_backend.run(*rows, given.get("initial_state"), None, 64, True)

    expect_the_definition(run, gla_scan, inputs)


def test_states_that_nobody_asks_for_are_not_made():
    rows = [gla_inputs()[name] for name in ("q", "k", "v", "log_decay")]
    assert gla_backend.run(*rows, None, None, 64, False)[1] is None
    rows = [ssd_inputs()[name] for name in ("x", "dt", "A", "B", "C")]
    assert fla_backend.run(*rows, None, None, None, None, 64, False)[1] is None


def test_inputs_are_brought_to_the_packages_dtypes():
    half, wide = ssd_inputs(torch.bfloat16), ssd_inputs()
    for module in (mamba_backend, fla_backend):
        mixed = [half["x"], wide["dt"], half["A"], wide["B"], half["C"], half["D"], wide["z"], half["initial_state"]]
        y, last = module.run(*mixed, None, 64, True)
        assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    half, wide = gla_inputs(torch.bfloat16), gla_inputs()
    y, last = gla_backend.run(wide["q"], half["k"], half["v"], half["log_decay"], half["initial_state"], None, 64, True)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)


ALL = [mamba_backend, fla_backend, gla_backend]


@pytest.mark.parametrize(
    ("modules", "case", "reason"),
    [
        (ALL, {}, None),
        (ALL, {"device": "cpu"}, "runs on a GPU"),
        (ALL, {"dtype": torch.float64}, "float64"),
        (ALL, {"sizes": {"batch": 0}}, "empty batch"),
        (ALL, {"features": ("float32 products",)}, "TF32"),
        ([fla_backend, gla_backend], {"features": ("seq_idx",)}, "one sequence a row"),
        ([mamba_backend], {"features": ("seq_idx",)}, None),
    ],
)
def test_what_the_packages_cannot_do_is_said_before_they_run(monkeypatch, modules, case, reason):
    monkeypatch.setattr(availability, "INSTALLED", dict.fromkeys(availability.INSTALLED, True))
    for module in modules:
        told = module.refuses(Case(**{"op": "op", "device": "cuda", "dtype": torch.float32, **case}))
        assert told is None if reason is None else reason in told


def test_float32_runs_where_tf32_is_allowed(monkeypatch):
    monkeypatch.setattr(availability, "INSTALLED", dict.fromkeys(availability.INSTALLED, True))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        for module in ALL:
            assert module.refuses(Case("op", "cuda", torch.float32, ("float32 products",))) is None
    finally:
        torch.set_float32_matmul_precision(before)


def test_neither_graphs_nor_transforms_of_functions(monkeypatch):
    monkeypatch.setattr(availability, "INSTALLED", dict.fromkeys(availability.INSTALLED, True))
    told = []

    def function(x):
        told.extend(module.refuses(Case("op", "cuda", torch.bfloat16)) for module in ALL)
        return x.sum()

    torch.func.grad(function)(torch.ones(2))
    assert all("torch.func" in reason for reason in told)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert all("torch.compile" in module.refuses(Case("op", "cuda", torch.bfloat16)) for module in ALL)


def test_a_package_that_is_missing_or_has_not_what_it_needs(monkeypatch):
    case = Case("op", "cuda", torch.bfloat16)
    monkeypatch.setattr(availability, "INSTALLED", dict.fromkeys(availability.INSTALLED, False))
    assert "mamba_ssm is not installed" in mamba_backend.refuses(case)
    assert "fla is not installed" in fla_backend.refuses(case)
    monkeypatch.setitem(availability.INSTALLED, "mamba_ssm", True)
    monkeypatch.setitem(availability.INSTALLED, "fla", True)
    assert "without its compiled part" in mamba_backend.refuses(case)
    assert "triton is not installed" in gla_backend.refuses(case)
    monkeypatch.setitem(availability.INSTALLED, "triton", True)
    assert gla_backend.refuses(case) is None
    monkeypatch.setattr(availability, "version", lambda package: "0.2.1")
    monkeypatch.setattr(availability, "FLA_VERSION", availability._fla_version())
    assert "fla-core 0.3 or newer" in gla_backend.refuses(case)

    def only_the_older_name(package):
        if package == "fla-core":
            raise availability.PackageNotFoundError
        return "0.6.0"

    monkeypatch.setattr(availability, "version", only_the_older_name)
    assert availability._fla_version() == (0, 6)


def test_a_named_package_that_cannot_run_raises_and_the_automatic_choice_goes_on():
    calls = [(ssd_scan, ssd_inputs(), "mamba_ssm"), (ssd_scan, ssd_inputs(), "fla"), (gla_scan, gla_inputs(), "fla")]
    for op, inputs, name in calls:
        with pytest.raises(BackendUnavailable, match="runs on a GPU"):
            op(**inputs, backend=name)
        assert torch.equal(op(**inputs), op(**inputs, backend="torch"))
        assert name in {row.backend for row in backends() if row.op == op.__name__}


def test_on_a_gpu_the_first_package_that_can_is_chosen(monkeypatch):
    from wavemamba.ops.ssd_scan import BACKENDS

    monkeypatch.setattr(availability, "INSTALLED", dict.fromkeys(availability.INSTALLED, True))
    table = [Backend(b.name, b.refuses, lambda name=b.name: name) for b in BACKENDS]

    def chosen(*features, dtype=torch.bfloat16):
        return resolve(table, Case("ssd_scan", "cuda", dtype, features))()

    assert chosen() == "mamba_ssm"
    monkeypatch.setitem(availability.INSTALLED, "selective_scan_cuda", False)
    assert chosen() == "fla"
    assert chosen("seq_idx") == chosen("float32 products", dtype=torch.float32) == "torch"
