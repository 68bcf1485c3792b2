import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import relative_error

from wavemamba import ConfigError, ShapeError
from wavemamba.ops import from_haar_map, haar_analysis, haar_synthesis, to_haar_map
from wavemamba.ops.haar import LAYOUTS

BACKENDS = ["reference", "torch", "auto"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_packets_are_those_of_pywavelets(backend, levels):
    x = torch.randn(1, 8, 16, 1, dtype=torch.float64)
    bands = haar_analysis(x, levels, backend=backend)
    packet = pywt.WaveletPacket2D(x[0, :, :, 0].numpy(), "haar", mode="periodization", maxlevel=levels)
    names = ["a", "h", "v", "d"]  # LL, LH (high-pass down the rows), HL, HH
    for band in range(4**levels):
        path = "".join(names[band // 4 ** (levels - 1 - level) % 4] for level in range(levels))
        assert np.allclose(bands[0, :, :, band, 0], packet[path].data), path


@settings(max_examples=40, deadline=None)
@given(
    levels=st.integers(0, 4),
    cells=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    layout=st.sampled_from(LAYOUTS),
    channels=st.integers(1, 7),
)
def test_maps_agree_and_invert_exactly(levels, cells, layout, channels):
    height, width = cells[0] * 2**levels, cells[1] * 2**levels
    x = torch.randn(2, height, width, channels, dtype=torch.float64)
    maps = [to_haar_map(x, levels, layout, backend=backend) for backend in BACKENDS]
    for other in maps[1:]:
        assert relative_error(other, maps[0]) < 1e-12
    for backend in BACKENDS:
        assert relative_error(from_haar_map(maps[0], levels, layout, backend=backend), x) < 1e-12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_put_each_band_where_they_say(layout):
    levels, side, channels = 2, 4, 3
    x = torch.randn(1, 8, 12, channels, dtype=torch.float64)
    bands, grid = haar_analysis(x, levels) / side, to_haar_map(x, levels, layout)
    for band in range(16):
        for c in range(channels):
            p1, p2, channel = band // 4, band % 4, c
            for h in range(2):
                for w in range(3):
                    if layout == "channel":
                        flat = band * channels + c
                        channel, p1, p2 = flat // 16, flat // 4 % 4, flat % 4
                    row, column = (p1 * 2 + h, p2 * 3 + w) if layout == "mosaic" else (4 * h + p1, 4 * w + p2)
                    assert grid[0, row, column, channel] == pytest.approx(float(bands[0, h, w, band, c]))


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_maps_gradcheck(backend):
    x = torch.randn(1, 4, 8, 2, dtype=torch.float64, requires_grad=True)
    for function in (to_haar_map, from_haar_map):
        assert torch.autograd.gradcheck(lambda v, f=function: f(v, 2, "channel", backend=backend), (x,))


def test_synthesis_inverts_analysis():
    x = torch.randn(2, 16, 8, 3)
    assert relative_error(haar_synthesis(haar_analysis(x, 3), 3), x) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_inverse_is_exact_under_autocast_and_another_default_device(backend):
    x = torch.randn(2, 8, 16, 3)
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert relative_error(haar_synthesis(haar_analysis(x, 2, backend=backend), 2, backend=backend), x) < 1e-6


def test_agrees_with_pytorch_wavelets():
    dwt = pytest.importorskip("pytorch_wavelets").DWTForward(J=1, wave="haar", mode="periodization")
    x = torch.randn(2, 8, 6, 3)
    low, (high,) = dwt(x.permute(0, 3, 1, 2))
    bands = haar_analysis(x, 1).permute(0, 4, 3, 1, 2)
    assert relative_error(bands[:, :, 0], low) < 1e-6
    assert relative_error(bands[:, :, 1:], high) < 1e-6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: haar_analysis(torch.randn(1, 6, 8, 1), 2), ShapeError, "divisible by 4"),
        (lambda: haar_analysis(torch.randn(6, 8, 1), 1), ShapeError, r"\(B, H, W, C\)"),
        (lambda: to_haar_map(torch.randn(1, 4, 4, 1), 1, "mosiac"), ConfigError, "did you mean 'mosaic'"),
        (lambda: to_haar_map(torch.randn(1, 4, 4, 1), -1, "mosaic"), ConfigError, "levels"),
        (lambda: haar_synthesis(torch.randn(1, 4, 4, 5, 1), 1), ShapeError, "bands"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
