"""ONNX files compute what the modules compute, with operators of ONNX alone."""

import re
import sys
from pathlib import Path

import block_zoo
import model_zoo
import numpy as np
import pytest
import torch
from support import relative_error, scan_inputs
from torch import nn
from torch.export import Dim

from wavemamba import ConfigError, DiMSUMBlock, MambaMixer, ShapeError, SpatialMambaBlock, WaveletMambaBlock, ops
from wavemamba.blocks import EinFFT
from wavemamba.compat.mamba_ssm import Mamba, Mamba2, MambaLMHeadModel
from wavemamba.compat.mamba_ssm.models.config_mamba import MambaConfig
from wavemamba.compat.mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from wavemamba.errors import BackendUnavailable, ExportError, WavemambaError
from wavemamba.integrations.onnx import export_onnx, translations
from wavemamba.layers import GLAMixer, Mamba2Mixer
from wavemamba.ops.haar import LAYOUTS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MIXERS = {"mamba2": lambda: Mamba2Mixer(DIM, d_state=4, head_dim=8), "gla": lambda: GLAMixer(DIM)}
BATCH, DIM, COND = Dim("batch"), block_zoo.DIM, block_zoo.COND


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def outputs(path, *inputs):
    """What onnxruntime computes from tensors, in the sequence of the arguments."""
    loaded = session(path)
    feed = {place.name: value.numpy() for place, value in zip(loaded.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(value) for value in loaded.run(None, feed)]


def assert_same(path, module, *inputs):
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for actual, wanted in zip(outputs(path, *inputs), expected, strict=True):
        assert relative_error(actual, wanted) < 1e-5


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def language_model(layer):
    options = {"layer": layer, "d_state": 4, **({"headdim": DIM} if layer == "Mamba2" else {})}
    model = MambaLMHeadModel(MambaConfig(d_model=DIM, n_layer=2, vocab_size=20, ssm_cfg=options)).eval()
    return Calls(lambda ids: model(ids).logits).eval()


def four_directions(x):
    """A scan over a grid (B, D, H, W) by rows and columns, from both ends, as Vision Mambas write it."""
    dim, height, width = x.shape[1:]
    paths = torch.stack([x.flatten(2), x.mT.flatten(2)], dim=1)
    u = torch.cat([paths, paths.flip(-1)], dim=1).flatten(1, 2)
    shared = u.unflatten(1, (4, dim))[:, :, :4]
    y = selective_scan_fn(u, u, -torch.ones(4 * dim, 4), shared, shared, delta_softplus=True).unflatten(1, (4, dim))
    y = y[:, :2] + y[:, 2:].flip(-1)
    return y[:, 0].unflatten(2, (height, width)) + y[:, 1].unflatten(2, (width, height)).mT


DROP_IN = {
    "Mamba": (lambda: Mamba(DIM, d_state=4), (None, None, DIM)),
    "Mamba2": (lambda: Mamba2(DIM, d_state=4, headdim=DIM // 2), (None, None, DIM)),
    "a grid": (lambda: Calls(four_directions), (None, DIM, None, None)),
}


@pytest.mark.parametrize("name", DROP_IN)
def test_what_is_written_against_mamba_ssm(name, tmp_path):
    make, sizes = DROP_IN[name]
    module, path = make().eval(), tmp_path / "module.onnx"
    open_sides = {place: Dim(f"side{place}") for place, size in enumerate(sizes) if size is None}

    def tokens(sides):
        return torch.randn([next(sides) if size is None else size for size in sizes])

    inputs = (tokens(iter((2, 6, 7))),)
    export_onnx(module, inputs, path, dynamic_shapes=((open_sides,),) if name == "a grid" else (open_sides,))
    for sides in ((2, 6, 7), (3, 11, 4)):
        assert_same(path, module, tokens(iter(sides)))


@pytest.mark.parametrize("layer", ["Mamba1", "Mamba2"])
def test_language_models_of_mamba_ssm(layer, tmp_path):
    module, path = language_model(layer), tmp_path / "model.onnx"
    export_onnx(module, (torch.randint(0, 20, (2, 6)),), path, dynamic_shapes=(({0: BATCH, 1: Dim("length")},),))
    for shape in ((2, 6), (3, 11)):
        assert_same(path, module, torch.randint(0, 20, shape))


def test_the_scan_with_all_that_it_takes(tmp_path):
    named = {name: value.float() for name, value in scan_inputs(2, 5, 6, 3, groups=2).items()}
    order = torch.tensor([3, 0, 4, 1, 2])

    def scan(u, delta, A, B, C, D, z, delta_bias, initial_state, order):
        options = {"delta_softplus": True, "return_last_state": True}
        full = ops.selective_scan(
            u, delta, A, B, C, D, z, delta_bias=delta_bias, initial_state=initial_state, order=order, **options
        )
        return *full, ops.selective_scan(u, delta.abs(), A, B[:, :, 0], C[:, :, 0])

    module, path = Calls(scan).eval(), tmp_path / "scan.onnx"
    length = Dim("length")
    open_sides = {**{key: {0: BATCH, 1: length} for key in ("u", "delta", "B", "C", "z")}, "initial_state": {0: BATCH}}
    shapes = [open_sides.get(name) for name in named] + [{0: length}]
    program = export_onnx(module, (*named.values(), order), path, dynamic_shapes=(tuple(shapes),))
    assert [node.op_type for node in program.model.graph].count("Scan") == 2
    for batch, steps in ((2, 5), (3, 1), (1, 40)):
        again = {name: value.float() for name, value in scan_inputs(batch, steps, 6, 3, groups=2, seed=steps).items()}
        assert_same(path, module, *again.values(), torch.randperm(steps))


def test_the_convolution_with_all_that_it_takes(tmp_path):
    def convolve(x, weight, bias, initial_state, order):
        full = ops.causal_conv1d(x, weight, bias, activation="silu", initial_state=initial_state, order=order)
        return full, ops.causal_conv1d(x, weight)

    def inputs(batch, length):
        shapes = ((batch, length, 6), (6, 4), (6,), (batch, 3, 6))
        return *(torch.randn(shape) for shape in shapes), torch.randperm(length)

    module, path = Calls(convolve).eval(), tmp_path / "conv.onnx"
    length = Dim("length")
    shapes = ({0: BATCH, 1: length}, None, None, {0: BATCH}, {0: length})
    export_onnx(module, inputs(2, 5), path, dynamic_shapes=(shapes,))
    for size in ((2, 5), (3, 1), (1, 40)):
        assert_same(path, module, *inputs(*size))


@pytest.mark.parametrize("name", ["mamba2", "gla"])
def test_a_recurrence_over_chunks_of_any_length(name, tmp_path):
    mixer, path = MIXERS[name]().eval(), tmp_path / "mixer.onnx"
    program = export_onnx(mixer, torch.randn(2, 20, DIM), path, dynamic_shapes=({0: BATCH, 1: Dim("length")},))
    assert [node.op_type for node in program.model.graph].count("Scan") == 1
    for size in ((1, 1), (3, 64), (2, 150)):
        assert_same(path, mixer, torch.randn(*size, DIM))


def test_sequences_of_a_recurrence_start_anew(tmp_path):
    """What is not finite in one sequence reaches no other."""
    module, path = Calls(torch.ops.wavemamba.linear_recurrence.default).eval(), tmp_path / "recurrence.onnx"
    decay, value = torch.rand(2, 6, 1), torch.randn(2, 6, 3)
    starts = (torch.arange(6) == 3).expand(2, 6).unsqueeze(-1)
    export_onnx(module, (decay, value, starts), path)
    assert_same(path, module, decay, value, starts)
    value[:, 1] = torch.inf
    (result,) = outputs(path, decay, value, starts)
    assert result[:, 3:].isfinite().all()


def test_haar_maps_in_every_layout(tmp_path):
    def transforms(x):
        maps = [
            function(x, levels, layout)
            for layout in LAYOUTS
            for levels in (1, 2, 3)
            for function in (ops.to_haar_map, ops.from_haar_map)
        ]
        return *maps, ops.haar_analysis(x, 2)

    module, path = Calls(transforms).eval(), tmp_path / "haar.onnx"
    export_onnx(module, torch.randn(2, 8, 16, 3), path, dynamic_shapes=(({0: BATCH},),))
    assert_same(path, module, torch.randn(3, 8, 16, 3))


@pytest.mark.parametrize("case", [*model_zoo.ONE_OF_EACH, "dimsum-attention-in-windows", "dimsum-linear-attention"])
def test_a_model_of_every_family(case, tmp_path):
    model, path = model_zoo.build(case, depth=1).eval(), tmp_path / "model.onnx"
    export_onnx(model, model_zoo.inputs(model), path, dynamic_shapes=({0: BATCH}, {0: BATCH}, {0: BATCH}))
    assert_same(path, model, *model_zoo.inputs(model, batch=3))
    loaded = session(path)
    assert [place.name for place in loaded.get_inputs()] == ["x", "t", "y"]
    assert [place.name for place in loaded.get_outputs()] == ["output"]
    assert {place.shape[0] for place in (*loaded.get_inputs(), *loaded.get_outputs())} == {"batch"}


def test_a_block_whose_input_is_a_result_too(tmp_path):
    """Scan orders and filters are constants, no operator is this library's, and the file holds little but weights."""
    frequency = WaveletMambaBlock(DIM // 2, COND, transform="dct", levels=1, scan="hilbert")
    block = DiMSUMBlock(DIM, COND, spatial=SpatialMambaBlock(DIM // 2, COND, scan="snake"), frequency=frequency).eval()
    path = tmp_path / "block.onnx"
    export_onnx(
        block,
        (torch.randn(2, 6, 5, DIM), torch.randn(2, COND)),
        path,
        dynamic_shapes={"x": {0: BATCH}, "cond": {0: BATCH}},
        output_names=["hidden", "residual"],
    )
    assert_same(path, block, torch.randn(3, 6, 5, DIM), torch.randn(3, COND))
    loaded = session(path)
    assert [place.name for place in (*loaded.get_inputs(), *loaded.get_outputs())] == [
        "x",
        "cond",
        "hidden",
        "residual",
    ]
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    snake = block.spatial.scan.permutation(6, 5).numpy()
    assert any(np.array_equal(array, snake) for array in arrays)
    weights = sum(4 * parameter.numel() for parameter in block.parameters())
    assert path.stat().st_size < weights + 40_000
    assert str(tmp_path).encode() not in path.read_bytes()
    assert b"wavelet.py" not in path.read_bytes()


def test_an_open_grid_that_is_walked_in_turn(tmp_path):
    block, path = WaveletMambaBlock(DIM, scan="raster").eval(), tmp_path / "block.onnx"
    sides = {0: BATCH, 1: Dim("height"), 2: Dim("width")}
    program = torch.export.export(block, (torch.randn(2, 5, 6, DIM),), dynamic_shapes=(sides,))
    export_onnx(program, (), path)
    for size in ((1, 8, 4), (3, 1, 7)):
        assert_same(path, block, torch.randn(*size, DIM))


class CumulativeMaximum(nn.Module):
    """An operator that ONNX lacks, below the block that holds it."""

    def __init__(self):
        super().__init__()
        self.inner = Calls(lambda x: x.cummax(dim=1).values)

    def forward(self, x, cond=None):
        return self.inner(x)


def test_an_operator_that_onnx_lacks_is_named_with_its_module():
    block = DiMSUMBlock(DIM, frequency=CumulativeMaximum(), mlp="none").eval()
    with pytest.raises(ExportError, match=r"frequency\.inner \(Calls\): .*aten\.cummax\.default.*custom_translations"):
        export_onnx(block, torch.randn(1, 2, 3, DIM))


def test_one_that_pytorch_decomposes_first_is_named_too():
    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(ExportError, match=r"1 \(Bessel\): .*bessel_j0"):
        export_onnx(nn.Sequential(nn.Identity(), Bessel()).eval(), torch.randn(2))


def test_operators_of_ones_own():
    @torch.library.custom_op("onnx_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    twice.register_fake(torch.empty_like)
    module, x = Calls(lambda x: twice(x)).eval(), torch.randn(3)
    with pytest.raises(ExportError, match=r"onnx_test\.twice"):
        export_onnx(module, x)
    from onnxscript import opset18

    table = {torch.ops.onnx_test.twice.default: lambda x: opset18.Add(x, x)}
    assert torch.equal(export_onnx(module, x, custom_translations=table)(x)[0], 2 * x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: export_onnx(
                SpatialMambaBlock(DIM, scan="hilbert").eval(),
                torch.randn(2, 3, 4, DIM),
                dynamic_shapes=({1: Dim("height")},),
            ),
            ExportError,
            r"\(SpatialMambaBlock\): expected fixed sides .* 'hilbert'",
        ),
        (
            lambda: export_onnx(
                MambaMixer(DIM).eval(), torch.randn(1, 4, DIM), kwargs={"seq_idx": torch.tensor([[0, 0, 1, 1]])}
            ),
            ExportError,
            r"directions\.0 \(SelectiveSSM\): expected one sequence a row",
        ),
        (
            lambda: export_onnx(
                SpatialMambaBlock(DIM).eval(), torch.randn(1, 3, 4, DIM), dynamic_shapes=({0: Dim("batch")},)
            ),
            ExportError,
            "two or more entries",
        ),
        (lambda: export_onnx(SpatialMambaBlock(DIM), torch.randn(1, 3, 4, DIM)), ConfigError, r"call\s+module.eval"),
        (lambda: export_onnx(SpatialMambaBlock(DIM).eval(), torch.randn(1, 3, DIM)), ShapeError, "x: expected"),
        (lambda: export_onnx(lambda x: x, torch.randn(1)), ConfigError, "nn.Module"),
        (
            lambda: export_onnx(torch.export.export(nn.Identity(), (torch.randn(1),)), torch.randn(1)),
            ConfigError,
            "exported program",
        ),
        (
            lambda: export_onnx(nn.Identity().eval(), torch.randn(1), "/nowhere/at/all.onnx"),
            ExportError,
            "can be written",
        ),
    ],
)
def test_what_cannot_be_exported_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_file_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(ExportError, match="no room"):
        export_onnx(nn.Sequential(nn.Linear(2, 2)).eval(), torch.randn(1, 2), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"old"


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "wavemamba.integrations.onnx_operators", raising=False)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'wavemamba\[onnx\]'"):
        translations()
    assert issubclass(BackendUnavailable, WavemambaError)


def test_fourier_transforms_are_in_onnx(tmp_path):
    block, path = EinFFT(DIM).eval(), tmp_path / "block.onnx"
    export_onnx(block, torch.randn(2, 3, 4, DIM), path, dynamic_shapes=({0: BATCH},))
    assert_same(path, block, torch.randn(3, 3, 4, DIM))


def test_the_page_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), {})
    assert {path.name for path in tmp_path.iterdir()} == {"block.pt2", "model.onnx"}
