"""The Triton packet map against the cell matrix in float64: both ways, every layout, exact inverse, gradient."""

import pytest
import torch
from support import relative_error

from wavemamba.ops import from_haar_map, haar_analysis, haar_synthesis, to_haar_map
from wavemamba.ops.haar import LAYOUTS


def image(device, levels, channels, batch=2, rows=1, columns=2):
    side = 2**levels
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, side * rows, side * columns, channels, generator=generator).to(device)


@pytest.mark.parametrize(("layout", "channels"), [("channel", 5), ("channel", 16), ("interleaved", 3), ("mosaic", 5)])
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_map_and_inverse(device, levels, layout, channels):
    x = image(device, levels, channels, rows=2)
    y = to_haar_map(x, levels, layout, backend="triton")
    expected = to_haar_map(x.double(), levels, layout, backend="reference")
    assert relative_error(y, expected) < 3e-7
    back = from_haar_map(y, levels, layout, backend="triton")
    assert relative_error(back, x.double()) < 3e-7


@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_levels(device, layout):
    x = image(device, 3, 64 if layout == "channel" else 3, batch=1)
    y = to_haar_map(x, 3, layout, backend="triton")
    assert relative_error(y, to_haar_map(x.double(), 3, layout, backend="reference")) < 3e-7
    assert relative_error(from_haar_map(y, 3, layout, backend="triton"), x.double()) < 3e-7


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_is_the_transposed_map(device, layout):
    x = image(device, 2, 16, batch=1).requires_grad_()
    flowing = torch.randn_like(x)
    for function in (to_haar_map, from_haar_map):
        exact = x.detach().double().requires_grad_()
        (gradient,) = torch.autograd.grad(function(x, 2, layout, backend="triton"), x, flowing)
        reference = function(exact, 2, layout, backend="reference")
        (expected,) = torch.autograd.grad(reference, exact, flowing.double())
        assert relative_error(gradient, expected) < 3e-7


def test_second_derivative_of_a_linear_map(device):
    x = image(device, 1, 4).requires_grad_()
    y = to_haar_map(x, 1, "mosaic", backend="triton")
    (gradient,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    exact = x.detach().double().requires_grad_()
    z = to_haar_map(exact, 1, "mosaic", backend="torch")
    (first,) = torch.autograd.grad((z**3).sum(), exact, create_graph=True)
    (expected,) = torch.autograd.grad(first.sum(), exact)
    assert relative_error(second, expected) < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_dtypes(device, dtype, tolerance):
    x = image(device, 2, 16).to(dtype)
    y = to_haar_map(x, 2, "channel", backend="triton")
    assert y.dtype == dtype
    assert relative_error(y, to_haar_map(x.double(), 2, "channel", backend="reference")) < tolerance


def test_strided_maps_among_poisoned_memory(device):
    dense = image(device, 1, 6)
    wide = torch.full((2, 4, 8, 16), torch.nan, device=device)
    for view in (wide[:, 1:3, 2:6, 3:9], wide[:, 1:3, 2:6, ::2][..., :6], wide.permute(0, 2, 1, 3)[:, :2, :, 1:7]):
        view = view[:, : dense.shape[1], : dense.shape[2]]
        view.copy_(dense)
        assert torch.equal(
            to_haar_map(view, 1, "channel", backend="triton"), to_haar_map(dense, 1, "channel", backend="triton")
        )


def test_analysis_and_synthesis(device):
    x = image(device, 2, 5)
    bands = haar_analysis(x, 2, backend="triton")
    assert relative_error(bands, haar_analysis(x.double(), 2, backend="reference")) < 3e-7
    assert relative_error(haar_synthesis(bands, 2, backend="triton"), x.double()) < 3e-7
