"""The CPU kernel of the Haar packet map against the definition in float64, and against PyWavelets."""

import itertools

import numpy as np
import pytest
import pywt
import torch
from support import relative_error

from wavemamba.ops import from_haar_map, haar_analysis, haar_synthesis, to_haar_map
from wavemamba.ops.haar import LAYOUTS

TOLERANCE = {torch.float32: 3e-7, torch.bfloat16: 3e-3, torch.float16: 4e-4}
DIRECTIONS = {"to": to_haar_map, "from": from_haar_map}


def transform_and_gradient(direction, x, *args, **options):
    x = x.detach().requires_grad_()
    y = DIRECTIONS[direction](x, *args, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(y.dtype)
    return y, *torch.autograd.grad(y, x, dy)


@pytest.mark.parametrize(("levels", "layout"), list(itertools.product(range(4), LAYOUTS)))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_agrees_with_the_definition(levels, layout, direction):
    side = 2**levels
    for channels in (1, 16, 37):
        x = torch.randn(2, 3 * side, 2 * side, channels)
        results = transform_and_gradient(direction, x, levels, layout, backend="numba")
        expected = transform_and_gradient(direction, x.double(), levels, layout, backend="reference")
        for result, truth in zip(results, expected, strict=True):
            assert relative_error(result, truth) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(dtype):
    x = torch.randn(1, 4, 8, 20).to(dtype)
    results = transform_and_gradient("to", x, 2, "channel", backend="numba")
    expected = transform_and_gradient("to", x.double(), 2, "channel", backend="reference")
    for result, truth in zip(results, expected, strict=True):
        assert result.dtype == dtype
        assert relative_error(result, truth) < TOLERANCE[dtype]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_inverse_is_exact(layout):
    x = torch.randn(2, 8, 16, 24)
    y = to_haar_map(x, 3, layout, backend="numba")
    assert relative_error(from_haar_map(y, 3, layout, backend="numba"), x) < 3e-7


def test_integers_come_back_bit_for_bit():
    """Sums of small integers and powers of two round nowhere."""
    x = torch.randint(-100, 100, (1, 8, 8, 5)).float()
    y = to_haar_map(x, 3, "channel", backend="numba")
    assert torch.equal(from_haar_map(y, 3, "channel", backend="numba"), x)


def test_strided_input():
    x = torch.randn(2, 4, 8, 48)
    half, turned = x[..., 24:], x.transpose(1, 2).contiguous().transpose(1, 2)
    assert not half.is_contiguous()
    assert not turned.is_contiguous()
    for strided in (half, turned, x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)):
        expected = to_haar_map(strided.contiguous(), 2, "mosaic", backend="numba")
        assert torch.equal(to_haar_map(strided, 2, "mosaic", backend="numba"), expected)


def test_bands_are_those_of_pywavelets():
    image = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    bands = haar_analysis(image[None, :, :, None], 2, backend="numba")[0, ..., 0]
    packet = pywt.WaveletPacket2D(image.double().numpy(), "haar", maxlevel=2)
    # PyWavelets names a split by its detail: h (rows), v (columns), d (both)
    for band, path in enumerate("".join(pair) for pair in itertools.product("ahvd", repeat=2)):
        assert np.allclose(bands[:, :, band], packet[path].data, atol=1e-6), path
    assert relative_error(haar_synthesis(bands[None, ..., None], 2, backend="numba")[0, ..., 0], image) < 3e-7


def test_results_do_not_depend_on_the_number_of_threads():
    x = torch.randn(2, 8, 8, 20)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(to_haar_map(x, 2, "channel", backend="numba"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_nan_stays_in_its_cell():
    x = torch.randn(1, 4, 4, 3)
    x[0, 0, 0, 1] = float("nan")
    y = to_haar_map(x, 1, "interleaved", backend="numba")
    expected = torch.zeros(1, 4, 4, 3, dtype=torch.bool)
    expected[0, :2, :2, 1] = True
    assert torch.equal(y.isnan(), expected)


def test_second_derivative():
    x = torch.randn(1, 2, 2, 3, requires_grad=True)
    (g,) = torch.autograd.grad(to_haar_map(x, 1, "mosaic", backend="numba").pow(3).sum(), x, create_graph=True)
    (gg,) = torch.autograd.grad(g.square().sum(), x)
    assert gg.ne(0).all()
