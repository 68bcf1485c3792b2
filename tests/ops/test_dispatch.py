import asyncio
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from op_calls import Call
from support import scan_inputs

from wavemamba import BackendUnavailable, ShapeError, SpatialMambaBlock, ops, scan_order
from wavemamba.ops import causal_conv1d
from wavemamba.ops.dispatch import availability
from wavemamba.ops.dispatch.backend import Backend, Case, requested_backend, resolve, runs_everything
from wavemamba.ops.dispatch.tables import tables
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
    with pytest.raises(BackendUnavailable, match=r"backend: expected .*'tritn'; did you mean 'triton'"):
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


def test_every_folder_of_an_op_has_its_table():
    folders = {path.parent.name for path in Path(ops.__file__).parent.glob("*/reference.py")}
    assert set(tables()) == {row.op for row in ops.backends()} == folders
    assert all(table[-1].name == "reference" for table in tables().values())


def test_an_op_is_called_by_the_name_of_its_folder(monkeypatch):
    """In the refusals of its cases, and among the ops of torch where it has kernels."""
    monkeypatch.setenv("WAVEMAMBA_BACKEND", "triton")
    for name, example in {"haar": "to_haar_map", **{name: name for name in tables() if name != "haar"}}.items():
        with pytest.raises(BackendUnavailable, match=f"cannot run {name} on cpu"):
            Call(example, "auto")()
        if any(backend.name == "numba" for backend in tables()[name]):
            assert hasattr(torch.ops.wavemamba, name)


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


def requested_elsewhere(run):
    """What is in force in another thread while this one is inside `use_backend`."""
    seen, threads = [], torch.get_num_threads()

    def same_number_of_threads():  # a graph guards on it, and a new thread has the machine's
        torch.set_num_threads(threads)
        seen.append(run())

    thread = threading.Thread(target=same_number_of_threads)
    thread.start()
    thread.join()
    return seen[0]


def test_use_backend_belongs_to_its_thread():
    with ops.use_backend("reference"):
        assert requested_backend("auto") == "reference"
        assert requested_elsewhere(lambda: requested_backend("auto")) == "auto"
    entered, leave = threading.Event(), threading.Event()

    def other():
        with ops.use_backend("torch"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with ops.use_backend("numba"):
        thread.start()
        assert entered.wait(10)
        assert requested_backend("auto") == "numba"
    assert requested_backend("auto") == "auto"
    leave.set()
    thread.join()


def test_use_backend_belongs_to_its_task():
    async def task(name):
        with ops.use_backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                assert requested_backend("auto") == name

    async def both():
        await asyncio.gather(task("torch"), task("numba"))

    asyncio.run(both())
    assert requested_backend("auto") == "auto"


def test_compiled_graphs_follow_use_backend(monkeypatch):
    """Outside of the graph, inside of it, and by the environment, without breaking it."""
    x, weight = torch.randn(1, 5, 3), torch.randn(3, 2)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append({node.target for node in graph.graph.nodes})
        return graph.forward

    def outside(x):
        return causal_conv1d(x, weight)

    def inside(x):
        with ops.use_backend("torch"):
            y = causal_conv1d(x, weight)
        return causal_conv1d(y, weight)

    kernel = torch.ops.wavemamba.causal_conv1d.default
    torch._dynamo.reset()
    compiled = torch.compile(outside, backend=backend, fullgraph=True)
    expected = compiled(x)
    assert kernel in graphs[-1]
    with ops.use_backend("torch"):
        torch.testing.assert_close(compiled(x), expected)
    assert kernel not in graphs[-1]
    torch.testing.assert_close(compiled(x), expected)
    assert len(graphs) == 2
    torch.testing.assert_close(requested_elsewhere(lambda: compiled(x)), expected)
    assert kernel in graphs[-1] or len(graphs) == 2  # a graph of its own, where threads differ in PyTorch's settings

    mixed = torch.compile(inside, backend=backend, fullgraph=True)
    torch.testing.assert_close(mixed(x), inside(x))
    assert kernel in graphs[-1]
    assert requested_backend("auto") == "auto"
    with ops.use_backend("numba"):
        torch.testing.assert_close(mixed(x), inside(x))
        assert requested_backend("auto") == "numba"


def test_importing_the_ops_imports_no_compiler():
    """`torch._dynamo` alone doubles the time that PyTorch takes to import."""
    code = (
        "import sys, types; package = types.ModuleType('wavemamba'); package.__path__ = [sys.argv[1]];"
        "sys.modules['wavemamba'] = package; import wavemamba.ops;"
        "print(sorted({'torch._dynamo', 'torch.utils.flop_counter', 'numba', 'triton'} & set(sys.modules)))"
    )
    folder = str(Path(ops.__file__).parents[1])
    result = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_graph_follows_the_first_use_backend_of_its_thread():
    x, weight = torch.randn(1, 5, 3), torch.randn(3, 2)
    kernel, graphs = torch.ops.wavemamba.causal_conv1d.default, []

    def backend(graph, example_inputs):
        graphs.append(kernel in {node.target for node in graph.graph.nodes})
        return graph.forward

    def in_a_new_thread():
        compiled = torch.compile(lambda x: causal_conv1d(x, weight), backend=backend, fullgraph=True)
        compiled(x)
        with ops.use_backend("torch"):
            compiled(x)

    requested_elsewhere(in_a_new_thread)
    assert graphs == [True, False]


def test_flops_are_those_of_the_equations():
    """Counted, not derived: what the definition's own loop computes, element by element."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Counter(TorchDispatchMode):
        """Products, sums and functions of one element; what only moves numbers counts nothing."""

        total = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            name = function.overloadpacket.__name__
            if name in ("mul", "add", "exp", "softplus", "silu"):
                self.total += result.numel()
            elif name == "sum":
                self.total += args[0].numel()
            return result

    inputs = {name: value.float() for name, value in scan_inputs(2, 5, 6, 3).items()}
    for absent in ((), ("D", "z"), ("delta_bias", "initial_state")):
        given = {name: value for name, value in inputs.items() if name not in absent}
        with Counter() as counter:
            selective_scan(**given, delta_softplus=True, backend="reference")
        with FlopCounterMode(display=False) as flops:
            selective_scan(**given, delta_softplus=True, backend="numba")
        assert flops.get_total_flops() == counter.total

    x, weight = torch.randn(2, 5, 6, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    with FlopCounterMode(display=False) as own:
        causal_conv1d(x, weight, backend="numba").sum().backward()
    with FlopCounterMode(display=False) as others:
        padded = torch.nn.functional.pad(x, (0, 0, 3, 0))
        torch.nn.functional.conv1d(padded.mT, weight[:, None], groups=6).sum().backward()
    own_counts, other_counts = (list(m.get_flop_counts()["Global"].values()) for m in (own, others))
    assert own_counts[0] == other_counts[0] == 2 * 2 * 5 * 6 * 4
    assert own_counts[1] == 2 * own_counts[0]

    with FlopCounterMode(display=False) as flops:
        ops.to_haar_map(torch.randn(1, 4, 8, 3), 2, "mosaic", backend="numba")
    assert flops.get_total_flops() == 4 * 8 * 3 * (1 + 2 * 2)


def test_flops_of_the_gradients_of_a_scan():
    from torch.utils.flop_counter import FlopCounterMode

    inputs = {name: value.float().requires_grad_() for name, value in scan_inputs(2, 5, 6, 3).items()}
    with FlopCounterMode(display=False) as flops:
        selective_scan(**inputs, delta_softplus=True, backend="numba").sum().backward()
    counts = flops.get_flop_counts()["Global"]
    assert counts[torch.ops.wavemamba.selective_scan_backward] == 2 * 5 * 6 * (19 * 3 + 3 * 7)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace", "ignore:.*method.*jit", "ignore::DeprecationWarning")
@pytest.mark.parametrize("trained", [True, False])
def test_jit_trace_of_a_block_in_a_transposed_order(trained):
    block = SpatialMambaBlock(8, scan=scan_order("snake", transpose=True)).requires_grad_(trained)
    x = torch.randn(1, 2, 3, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every shape that it reads
        traced = torch.jit.trace(block, x)
    torch.testing.assert_close(traced(2 * x), block(2 * x))
