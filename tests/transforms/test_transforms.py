"""What every frequency transform promises: exact inverses, the same checks, any precision, one graph for any grid."""

import pickle

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import relative_error

from wavemamba import ConfigError, ShapeError, frequency_transform
from wavemamba.ops.haar import LAYOUTS
from wavemamba.transforms import FrequencyTransform, list_transforms, register_transform

NAMES = ["haar", "dct", "db2", "db10", "sym4", "bior2.2", "coif1"]
"""One of every kind: filters of 2 to 20 samples, orthonormal or not, of an even or odd number of cells."""


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from([name for name in list_transforms() if name != "dmey"]),
    levels=st.integers(0, 3),
    cells=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.integers(1, 5),
    batch=st.integers(0, 2),
)
def test_every_name_inverts_exactly(name, levels, cells, channels, batch):
    transform = frequency_transform(name, levels)
    side = transform.side
    x = torch.randn(batch, cells[0] * side, cells[1] * side, channels, dtype=torch.float64)
    bands = transform.analysis(x)
    assert bands.shape == (batch, *cells, side * side, channels)
    assert relative_error(transform.synthesis(bands), x) < 1e-8
    for layout in LAYOUTS:
        assert relative_error(transform.from_map(transform.to_map(x, layout), layout), x) < 1e-8


@pytest.mark.parametrize("autocast", [False, True])
def test_the_inverse_is_exact_in_float32(name, autocast):
    transform = frequency_transform(name, 2)
    x = torch.randn(2, 8, 16, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert relative_error(transform.synthesis(transform.analysis(x)), x) < 1e-6
        assert relative_error(transform.from_map(transform.to_map(x, "channel"), "channel"), x) < 1e-6


def test_a_low_precision_map_is_summed_in_float32(name):
    transform = frequency_transform(name, 2)
    x = torch.randn(1, 8, 8, 4).bfloat16()
    bands = transform.analysis(x)
    assert bands.dtype == torch.bfloat16
    assert relative_error(bands, transform.analysis(x.double())) < 3e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_global_defaults_change_nothing(name, dtype):
    transform = frequency_transform(name, 1)
    x = torch.randn(1, 6, 4, 2)
    expected = transform.analysis(x), transform.synthesis(transform.analysis(x))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            actual = transform.analysis(x), transform.synthesis(transform.analysis(x))
    finally:
        torch.set_default_dtype(before)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", [2, 3, 6, 10])
def test_one_axis_is_that_of_pywavelets(size):
    for wavelet in pywt.wavelist(kind="discrete"):
        if wavelet != "dmey":
            x = torch.randn(1, 2 * size, 1, 1, dtype=torch.float64).expand(-1, -1, 2, -1)
            low = frequency_transform(wavelet, 1).analysis(x)[0, :, 0, :, 0] / 2**0.5
            coarse, fine = pywt.dwt(x[0, :, 0, 0].numpy(), wavelet, mode="periodization")
            assert np.allclose(low[:, 0], coarse), wavelet
            assert np.allclose(low[:, 1], fine), wavelet


@pytest.mark.parametrize("name", ["db2", "sym4", "bior2.2"])
def test_packets_are_those_of_pywavelets(name):
    x = torch.randn(1, 16, 8, 1, dtype=torch.float64)
    bands = frequency_transform(name, 2).analysis(x)
    packet = pywt.WaveletPacket2D(x[0, :, :, 0].numpy(), name, mode="periodization", maxlevel=2)
    for band in range(16):
        path = "ahvd"[band // 4] + "ahvd"[band % 4]
        assert np.allclose(bands[0, :, :, band, 0], packet[path].data), path


@pytest.mark.parametrize("name", ["db2", "sym4", "bior2.2", "db10"])
def test_one_level_is_that_of_pytorch_wavelets(name):
    dwt = pytest.importorskip("pytorch_wavelets").DWTForward(J=1, wave=name, mode="periodization").double()
    x = torch.randn(2, 24, 20, 3, dtype=torch.float64)
    low, (high,) = dwt(x.permute(0, 3, 1, 2))
    bands = frequency_transform(name, 1).analysis(x).permute(0, 4, 3, 1, 2)
    assert relative_error(bands[:, :, 0], low) < 1e-6  # its filters are float32
    assert relative_error(bands[:, :, 1:], high) < 1e-6


def test_dct_of_a_constant_is_one_coefficient():
    bands = frequency_transform("dct", 2).analysis(torch.ones(1, 4, 4, 1, dtype=torch.float64))
    assert bands[0, 0, 0, 0, 0] == pytest.approx(4.0)
    assert bands[0, 0, 0, 1:].abs().max() < 1e-12


@pytest.mark.parametrize("name", ["dct", "db2", "bior2.2"])
def test_derivatives(name):
    transform = frequency_transform(name, 1)
    x = torch.randn(1, 4, 6, 2, dtype=torch.float64, requires_grad=True)
    bands = torch.randn(1, 2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    for function, value in ((transform.analysis, x), (transform.synthesis, bands)):
        assert torch.autograd.gradcheck(function, value, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(lambda v, f=function: f(v).square(), value)


def test_the_gradient_of_a_map_and_back_is_one(name):
    transform = frequency_transform(name, 2)
    x = torch.randn(1, 4, 8, 3, dtype=torch.float64, requires_grad=True)
    for layout in LAYOUTS:
        (gradient,) = torch.autograd.grad(transform.from_map(transform.to_map(x, layout), layout).sum(), x)
        assert torch.allclose(gradient, torch.ones_like(x))


def test_vmap(name):
    transform = frequency_transform(name, 1)
    x = torch.randn(3, 2, 4, 6, 2)
    assert relative_error(torch.vmap(transform.analysis)(x), torch.stack([*map(transform.analysis, x)])) < 1e-6


@pytest.mark.parametrize("name", ["dct", "db2"])
def test_one_graph_for_any_grid(name):
    transform = frequency_transform(name, 1)

    def round_trip(x):
        bands = transform.analysis(x)
        return bands, transform.synthesis(bands * 2)

    torch._dynamo.reset()  # the other name's graph is no recompilation
    compiled = torch.compile(round_trip, fullgraph=True, backend="eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for grid in ((6, 8), (4, 12), (12, 10)):
            x = torch.randn(2, *grid, 3)
            for one, other in zip(compiled(x), round_trip(x), strict=True):
                assert relative_error(one, other) < 1e-6


def test_one_graph_for_the_gradient_on_any_height():
    analysis = frequency_transform("bior2.2", 1).analysis
    torch._dynamo.reset()
    compiled = torch.compile(analysis, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for height in (6, 4):
            x = torch.randn(2, height, 8, 3, requires_grad=True)
            torch._dynamo.mark_dynamic(x, 1)
            gradients = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (compiled, analysis)]
            assert relative_error(*gradients) < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "levels"), [("dct", 2), ("db2", 1), ("bior2.2", 2)])
def test_maps_and_their_gradients_are_one_graph_for_any_grid(name, levels, layout):
    transform = frequency_transform(name, levels)

    def there_and_back(x):
        grid = transform.to_map(x, layout)
        return grid, transform.from_map(grid.tanh(), layout)

    torch._dynamo.reset()
    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for cells in ((3, 4), (1, 5), (2, 2), (1, 1)):  # a single cell along a side lies otherwise in memory
            x = torch.randn(2, *(transform.side * side for side in cells), 3, requires_grad=True)
            results = [call(x) for call in (compiled, there_and_back)]
            gradients = [torch.autograd.grad(sum(y.sin().sum() for y in ys), x) for ys in results]
            for one, other in zip(*results, strict=True):
                assert relative_error(one, other) < 1e-6
            assert relative_error(gradients[0][0], gradients[1][0]) < 1e-6


@pytest.mark.parametrize("kind", [("wavelet", "bior2.2", 1), ("dct", "3", 3)])
def test_the_operator_of_a_map_is_well_declared(kind):
    x = torch.randn(1, 6, 12, 2, requires_grad=True)
    torch.library.opcheck(torch.ops.wavemamba.bank_map.default, (x, *kind, "mosaic", 0.5, True, False))


class Round(torch.nn.Module):
    def __init__(self, transform):
        super().__init__()
        self.transform = transform

    def forward(self, x):
        return self.transform.to_map(x, "mosaic")


@pytest.mark.parametrize("name", ["dct", "db2"])
def test_an_exported_graph_takes_any_grid(name):
    module, (h, w) = Round(frequency_transform(name, 1)), torch.export.dims("h", "w")
    exported = torch.export.export(module, (torch.randn(1, 8, 6, 2),), dynamic_shapes={"x": {1: 2 * h, 2: 2 * w}})
    for grid in ((8, 6), (4, 10), (2, 4), (2, 2)):
        x = torch.randn(1, *grid, 2)
        assert relative_error(exported.module()(x), module(x)) < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.to_map(torch.randn(1, 7, 8, 2), "mosaic"), "divisible by 2"),
        (lambda t: t.analysis(torch.randn(1, 8, 7, 2)), "divisible by 2"),
        (lambda t: t.analysis(torch.randn(1, 1, 1, 2)), "divisible by 2"),
        (lambda t: t.from_map(torch.randn(1, 7, 8, 2), "channel"), "divisible by 2"),
        (lambda t: t.analysis(torch.randn(8, 8, 2)), r"\(B, H, W, C\)"),
        (lambda t: t.to_map(torch.randn(1, 1, 8, 8, 2), "mosaic"), r"\(B, H, W, C\)"),
        (lambda t: t.from_map(torch.randn(8, 8, 2), "mosaic"), r"\(B, H, W, C\)"),
        (lambda t: t.synthesis(torch.randn(1, 4, 4, 5, 2)), "bands"),
        (lambda t: t.synthesis(torch.randn(1, 4, 4, 2)), "bands"),
        (lambda t: t.analysis(torch.ones(1, 4, 4, 2, dtype=torch.int64)), "floating"),
        (lambda t: t.synthesis(torch.ones(1, 4, 4, 4, 2, dtype=torch.int32)), "floating"),
        (lambda t: t.to_map(torch.ones(1, 4, 4, 2, dtype=torch.bool), "mosaic"), "floating"),
        (lambda t: t.from_map(torch.ones(1, 4, 4, 2, dtype=torch.uint8), "mosaic"), "floating"),
        (lambda t: t.analysis(torch.ones(1, 4, 4, 2, dtype=torch.complex64)), "floating"),
        (lambda t: t.analysis(torch.ones(1, 4, 4, 2).to(torch.float8_e4m3fn)), "float8_e4m3fn"),
        (lambda t: t.synthesis(torch.ones(1, 4, 4, 4, 2).to(torch.float8_e5m2)), "float8_e5m2"),
        (lambda t: t.to_map(torch.ones(1, 0, 4, 2), "mosaic"), "divisible by 2"),
        (lambda t: t.synthesis(torch.ones(1, 0, 4, 4, 2)), "h, w >= 1"),
        (lambda t: t.analysis([1.0]), "x: expected a tensor, got list"),
        (lambda t: t.synthesis([1.0]), "bands: expected a tensor, got list"),
    ],
)
def test_a_wrong_map_is_named_by_every_transform(name, call, message):
    with pytest.raises(ShapeError, match=message):
        call(frequency_transform(name, 1))


def test_a_layout_is_named_by_every_transform(name):
    transform, x = frequency_transform(name, 1), torch.randn(1, 4, 4, 1)
    assert torch.equal(transform.to_map(x, "Mosaic"), transform.to_map(x, "mosaic"))
    for call in (transform.to_map, transform.from_map):
        with pytest.raises(ConfigError, match="did you mean 'mosaic'"):
            call(x, "mosiac")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("harr",), "did you mean 'haar'.*register_transform"),
        (("bd2",), "did you mean 'db2'"),
        (("dmey",), "inverts exactly.*sym8"),
        (("db2", -1), "levels"),
        (("haar", 99), "levels"),
        (("dct", 1.5), "levels"),
    ],
)
def test_bad_options_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        frequency_transform(*arguments)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["Haar", "DCT", "DB2", "haar"])
def test_names_may_be_spelt_loosely(name):
    transform = frequency_transform(name, 1)
    assert transform == frequency_transform(name.casefold(), 1)
    assert pickle.loads(pickle.dumps(transform)) == transform


class Shuffle(FrequencyTransform):
    """Not a frequency transform at all, but an exact one: the tokens of a cell are its bands."""

    def __init__(self, levels):
        self.levels = levels

    @property
    def side(self):
        return 2**self.levels

    def split(self, x):
        cells = x.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side)).transpose(2, 3)
        return cells.flatten(3, 4)

    def merge(self, bands):
        return bands.unflatten(3, (self.side, self.side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


class Forgetful(Shuffle):
    def split(self, x):
        return super().split(x)[:, :, :, :1]

    def merge(self, bands):
        return super().merge(bands)[:, 1:]


def test_a_transform_of_ones_own_is_chosen_by_name_and_checked():
    register_transform("shuffle", Shuffle)
    register_transform("shuffle", Shuffle)
    assert "shuffle" in list_transforms()
    transform, x = frequency_transform("Shuffle", 1), torch.randn(1, 4, 6, 2)
    assert torch.equal(transform.from_map(transform.to_map(x, "mosaic"), "mosaic"), x)
    with pytest.raises(ShapeError, match="divisible by 2"):
        transform.analysis(x[:, 1:])
    with pytest.raises(ShapeError, match=r"Forgetful\.split"):
        Forgetful(1).analysis(x)
    with pytest.raises(ShapeError, match=r"Forgetful\.merge"):
        Forgetful(1).synthesis(transform.analysis(x))
    with pytest.raises(ConfigError, match="taken"):
        register_transform("SHUFFLE", Forgetful)
    register_transform("no.transform", lambda levels: levels)
    with pytest.raises(ConfigError, match="subclass"):
        frequency_transform("no.transform")
    for name, make in (("a b", Shuffle), ("ab", None)):
        with pytest.raises(ConfigError, match="expected"):
            register_transform(name, make)
