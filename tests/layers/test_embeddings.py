import torch
import torch.nn.functional as F
from support import relative_error

from wavemamba.layers import TimeEmbed
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
