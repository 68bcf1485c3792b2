import pytest
import torch
import torch.nn.functional as F
from support import relative_error

from wavemamba import ConfigError
from wavemamba.layers import ConditionalPositions, PatchEmbed, RotaryPositions, TimeEmbed
from wavemamba.layers.embeddings import resample_position


def test_resampling_is_bicubic_with_its_gradient():
    position = torch.randn(1, 5, 8, 6, dtype=torch.float64, requires_grad=True)
    assert resample_position(position, 5, 8) is position
    for size in ((3, 11), (10, 8), (1, 1), (5, 4)):
        expected = F.interpolate(position.permute(0, 3, 1, 2), size, mode="bicubic", antialias=True)
        resampled = resample_position(position, *size)
        assert relative_error(resampled.permute(0, 3, 1, 2), expected) < 1e-12
        weight = torch.randn_like(expected)
        (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), position)
        (gradient,) = torch.autograd.grad((resampled.permute(0, 3, 1, 2) * weight).sum(), position)
        assert relative_error(gradient, expected_gradient) < 1e-12


def test_resampling_is_one_graph_for_any_size():
    compiled = torch.compile(resample_position, fullgraph=True, backend="aot_eager", dynamic=True)
    position = torch.randn(1, 5, 8, 6, requires_grad=True)
    for size in ((3, 11), (10, 7), (6, 12)):
        gradients = [
            torch.autograd.grad(f(position, *size).square().sum(), position)[0] for f in (compiled, resample_position)
        ]
        assert relative_error(*gradients) < 1e-5


def test_time_features_keep_the_precision_of_the_time():
    embed = TimeEmbed(4).double()
    t = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(embed, t)


def test_rotary_positions_are_complex_products_on_any_grid():
    dim, x = 12, torch.randn(2, 3, 5, 12, dtype=torch.float64, requires_grad=True)
    rotated = RotaryPositions(dim)(x)
    pairs = torch.view_as_complex(x.detach().unflatten(-1, (-1, 2)))
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing="ij")
    frequencies = [10000.0 ** (-j / 3) for j in range(3)]
    angles = torch.stack([place * f for place in (columns, rows) for f in frequencies], dim=-1).double()
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    assert relative_error(rotated, expected) < 1e-6
    assert relative_error(rotated.norm(), x.norm()) < 1e-12  # a rotation
    assert torch.autograd.gradcheck(RotaryPositions(dim), x[:1, :2, :2].detach().requires_grad_())
    with pytest.raises(ConfigError, match="dim: expected a multiple of 4"):
        RotaryPositions(6)


@pytest.mark.parametrize("cond_dim", [None, 3])
def test_conditional_positions_see_the_borders(cond_dim):
    positions = ConditionalPositions(4, cond_dim).double()
    x = torch.ones(1, 4, 5, 4, dtype=torch.float64)
    cond = None if cond_dim is None else torch.randn(1, cond_dim, dtype=torch.float64)
    y = positions(x, cond)
    assert relative_error(y[:, 1:3, 1:4], y[:, 1:2, 1:2].expand(1, 2, 3, 4)) < 1e-12  # the same inside
    assert relative_error(y[:, 0], y[:, 1]) > 1e-3
    for parameter in positions.parameters():
        torch.nn.init.normal_(parameter)
    x.requires_grad_()
    arguments = (x,) if cond is None else (x, cond.requires_grad_())
    assert torch.autograd.gradcheck(positions, arguments)


@pytest.mark.parametrize("make", [lambda: RotaryPositions(8), lambda: ConditionalPositions(8, 8)])
def test_positions_are_one_graph_keep_the_dtype_and_take_an_empty_batch(make):
    positions, cond = make(), torch.randn(2, 8)
    compiled = torch.compile(positions, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((3, 7), (4, 4), (1, 6)):
        x = torch.randn(2, *size, 8)
        assert relative_error(compiled(x, cond), positions(x, cond)) < 1e-6
    expected = positions(x, cond)
    half = positions.to(torch.bfloat16)(x.bfloat16(), cond.bfloat16())
    assert half.dtype == torch.bfloat16
    assert relative_error(half, expected) < 2e-2
    assert positions(x[:0].bfloat16(), cond[:0].bfloat16()).shape == (0, 1, 6, 8)


@pytest.mark.parametrize(("in_chans", "patch", "shape"), [(4, 2, (2, 8, 6)), (1, (2, 3), (3, 4, 9)), (3, 1, (1, 5, 1))])
def test_patches_are_the_convolution_channels_last(in_chans, patch, shape):
    batch, height, width = shape
    embed = PatchEmbed(in_chans, 16, patch).double()
    x = torch.randn(batch, in_chans, height, width, dtype=torch.float64, requires_grad=True)
    results = embed(x), embed.proj(x).permute(0, 2, 3, 1)
    assert results[0].is_contiguous()
    assert relative_error(*results) < 1e-14
    weight = torch.randn_like(results[0])
    wanted = [x, *embed.parameters()]
    gradients, expected = (torch.autograd.grad((y * weight).sum(), wanted) for y in results)
    for gradient, truth in zip(gradients, expected, strict=True):
        assert relative_error(gradient, truth) < 1e-14


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
def test_tokens_are_not_copied_behind_the_convolution_of_patches():
    embed, returned = PatchEmbed(4, 32, 2), []
    embed.proj.register_forward_hook(lambda module, inputs, y: returned.append(y))
    tokens = embed(torch.randn(2, 4, 8, 6))
    assert tokens.data_ptr() == returned[0].data_ptr()
