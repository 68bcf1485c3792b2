import pytest
import torch
from support import scan_inputs

from wavemamba import BackendUnavailable, ShapeError, ops
from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Backend, Case, resolve, runs_everything
from wavemamba.ops.selective_scan import BACKENDS, selective_scan


def scan(**changes):
    inputs = {k: v.float() for k, v in scan_inputs().items()}
    return selective_scan(**{**inputs, **changes})


def test_argument_beats_use_backend_beats_environment(monkeypatch):
    seen = []
    table = tuple(
        Backend(name, runs_everything, lambda name=name: seen.append(name)) for name in ("numba", "torch", "reference")
    )
    case = Case("op", "cpu", torch.float32)
    resolve(table, case)()
    monkeypatch.setenv("WAVEMAMBA_BACKEND", "torch")
    resolve(table, case)()
    with ops.use_backend("reference"):
        resolve(table, case)()
        with ops.use_backend("numba"):
            resolve(table, case)()
        resolve(table, case, "torch")()
    resolve(table, case)()
    assert seen == ["numba", "torch", "reference", "numba", "torch", "torch"]


def test_named_backend_that_cannot_run_raises_with_the_reason():
    with pytest.raises(BackendUnavailable, match="float64"):
        scan(backend="numba", u=scan_inputs()["u"])
    with pytest.raises(BackendUnavailable, match="runs on a GPU"):
        scan(backend="mamba_ssm", initial_state=None)


def test_an_outdated_triton_is_named(monkeypatch):
    pytest.importorskip("triton")
    case = Case("op", "cuda", torch.float32)
    monkeypatch.setattr(availability, "version", lambda package: "3.2.0")
    monkeypatch.setattr(availability, "TRITON_VERSION", availability._triton_version())
    assert "Triton 3.3" in availability.triton(case)
    monkeypatch.setattr(availability, "version", lambda package: "3.10.0+git1234")
    monkeypatch.setattr(availability, "TRITON_VERSION", availability._triton_version())
    assert availability.triton(case) is None


def test_misspelt_backend_raises(monkeypatch):
    with pytest.raises(BackendUnavailable, match=r"backend: expected .*'tritn'"):
        scan(backend="tritn")
    with pytest.raises(BackendUnavailable, match="use_backend"), ops.use_backend("tritn"):
        pass
    monkeypatch.setenv("WAVEMAMBA_BACKEND", "tritn")
    with pytest.raises(BackendUnavailable, match="WAVEMAMBA_BACKEND"):
        scan()


def test_automatic_fallback_on_a_gpu_warns_once():
    table = (
        Backend("triton", lambda case: "not here", lambda: None),
        Backend("torch", runs_everything, lambda: None, slow_on_gpu=True),
    )
    case = Case("an op of this test", "cuda", torch.float32)
    with pytest.warns(ops.SlowBackendWarning, match="not here"):
        resolve(table, case)
    resolve(table, case)  # a second warning would be an error


def test_backends_lists_every_backend_and_its_reason():
    rows = ops.backends()
    scans = {row.backend: row.reason for row in rows if row.op == "selective_scan" and row.device == "cpu"}
    assert set(scans) == {backend.name for backend in BACKENDS}
    assert scans["reference"] is None
    assert "GPU" in scans["mamba_ssm"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": torch.randn(2, 6)}, r"u: expected \(B, L, E\)"),
        ({"delta": torch.randn(2, 12, 6)}, "delta"),
        ({"A": torch.randn(5, 4)}, "A"),
        ({"B": torch.randn(2, 13, 3)}, "B"),
        ({"B": torch.randn(2, 13, 5, 4), "C": torch.randn(2, 13, 5, 4)}, "groups"),
        ({"D": torch.randn(7)}, "D"),
        ({"z": torch.randn(2, 13, 5)}, "z"),
        ({"initial_state": torch.randn(2, 6, 5)}, "initial_state"),
        ({"order": torch.arange(12)}, "order"),
        ({"u": torch.ones(2, 13, 6, dtype=torch.int64)}, "floating"),
    ],
)
def test_wrong_shapes_are_named(changes, message):
    with pytest.raises(ShapeError, match=message):
        scan(**changes)


def test_convolution_checks():
    x, weight = torch.randn(2, 5, 3), torch.randn(3, 4)
    with pytest.raises(ShapeError, match="weight"):
        ops.causal_conv1d(x, torch.randn(4, 4))
    with pytest.raises(ShapeError, match="activation"):
        ops.causal_conv1d(x, weight, activation="relu")
    with pytest.raises(ShapeError, match="initial_state"):
        ops.causal_conv1d(x, weight, initial_state=torch.randn(2, 4, 3))
